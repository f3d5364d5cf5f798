"""Classify or segment images with a checkpoint, whose own task, model and classes are taken.

    python infer.py --ckpt_path svt_small.ckpt --images photographs/ --output_png classes.png
    python infer.py --ckpt_path upernet_svt_small.ckpt --images photographs/ --output_dir segmented

A classifier tells each image's likeliest classes. A segmentor writes into output_dir, for each
image, its classes over the picture with a legend (NAME_overlay.png) and as numbers
(NAME_labels.png).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mindspore import nn

from mindtwins.checkpoint import load_checkpoint
from mindtwins.classification import predict as classification
from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.config import InferConfig, parse_config
from mindtwins.data.image_folder import EXTENSIONS
from mindtwins.errors import UserError, run_cli
from mindtwins.execution import use_device
from mindtwins.files import atomic_write, check_outputs
from mindtwins.segmentation import ade20k, digits
from mindtwins.segmentation import predict as segmentation
from mindtwins.segmentation.task import test_window
from mindtwins.segmentation.transforms import TestTransform
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World


def main(argv: list[str]) -> None:
    """Read the configuration, predict, report."""
    config = parse_config(InferConfig, argv, __doc__)
    if not config.ckpt_path:
        raise UserError("ckpt_path is missing: say which checkpoint with --ckpt_path")
    files = find_files(config.images)
    outputs = {"--output_json": config.output_json, "--output_png": config.output_png}
    check_outputs(outputs, [config.ckpt_path, *files])
    use_device(config.device_target, config.allow_tf32)
    config = as_trained(config)
    names = class_names(config)
    model, _ = create_task(config).build_model(World())
    results = PREDICT[config.task](config, model, files, names)
    if config.output_json:
        with atomic_write(config.output_json) as stream:
            stream.write(json.dumps(results, indent=2).encode() + b"\n")


def classify(
    config: InferConfig, model: nn.Cell, files: Sequence[Path], names: Sequence[str]
) -> list[dict]:
    """Print the likeliest classes, and draw them if asked to."""
    transform = EvaluationTransform(config.image_size, config.crop_pct, config.mean, config.std)
    results = classification.classify(
        model, transform, files, names, config.top_k, config.skip_bad_images
    )
    for result in results:
        print(classification.describe(result))
    if config.output_png:
        classification.draw(config.output_png, results)
    return results


def segment(
    config: InferConfig, model: nn.Cell, files: Sequence[Path], names: Sequence[str]
) -> list[dict]:
    """Write overlays and label files, and print which classes cover most of each image."""
    results = segmentation.segment(
        model,
        TestTransform(
            config.mean, config.std, scale=config.resize_scale, ratios=config.test_ratios
        ),
        files,
        names,
        Path(config.output_dir),
        flip=config.test_flip,
        window=test_window(config),
        skip_bad_images=config.skip_bad_images,
    )
    for result in results:
        print(segmentation.describe(result, config.top_k))
    return results


PREDICT = {"classification": classify, "segmentation": segment}


def find_files(images: str) -> list[Path]:
    """The image itself, or the images in the folder, sorted by name."""
    if not images:
        raise UserError("images is missing: name an image or a folder with --images")
    path = Path(images)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist: --images takes an image or a folder")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise UserError(f"{path} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return files


def as_trained(config: InferConfig) -> InferConfig:
    """The configuration with the task, the variant and the classes that the checkpoint states."""
    stated = load_checkpoint(config.ckpt_path).metadata or {}
    return replace(
        config,
        task=stated.get("task", config.task),
        model=stated.get("variant", config.model),
        num_classes=stated.get("num_classes") or config.num_classes,
    )


def class_names(config: InferConfig) -> Sequence[str]:
    """One name per class: the lines of `class_names`, those of the data set, or numbers.

    A segmentor has the digits' names only where `dataset` says so; any other of 150 classes is
    taken for one of ADE20K, as the published ones are.
    """
    if not config.class_names:
        if config.task == "segmentation":
            known = digits.CLASSES if config.dataset == "digits" else ade20k.CLASSES
            if len(known) == config.num_classes:
                return known
        return [f"class {i}" for i in range(config.num_classes)]
    try:
        names = Path(config.class_names).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class_names {config.class_names}: {error}") from error
    if len(names) != config.num_classes:
        raise UserError(
            f"{config.class_names} has {len(names)} lines, but the model {config.num_classes}"
            " classes: one name per line is needed"
        )
    return names


if __name__ == "__main__":
    run_cli(main)
