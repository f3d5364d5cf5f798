"""Classify images with a checkpoint: the likeliest classes of each, as text, JSON and a picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mindspore import Tensor
from tqdm import tqdm

from mindtwins.checkpoint import load_checkpoint
from mindtwins.config import InferConfig, parse_config
from mindtwins.data import EvaluationTransform
from mindtwins.data.decode import UnreadableImage, read_rgb
from mindtwins.data.image_folder import EXTENSIONS
from mindtwins.errors import UserError, run_cli
from mindtwins.execution import use_device
from mindtwins.files import atomic_write
from mindtwins.tasks import create_task

DESCRIPTION = """Classify an image, or every image in a folder, with a checkpoint.

python infer.py --ckpt_path svt_small.ckpt --images photographs/
"""
PICTURES_PER_ROW = 4


def main(argv: list[str]) -> None:
    config = parse_config(InferConfig, argv, DESCRIPTION)
    if not config.ckpt_path:
        raise UserError("ckpt_path is missing: say which checkpoint with --ckpt_path")
    files = find_files(config.images)
    use_device(config.device_target)
    config = as_trained(config)
    names = class_names(config)
    model, _ = create_task(config).build_model()
    transform = EvaluationTransform(config.image_size, config.crop_pct, config.mean, config.std)

    results, pictures = [], []
    for file in tqdm(files, unit="image", leave=False, disable=None):
        try:
            picture = read_rgb(file)
        except UnreadableImage as error:
            raise UserError(f"cannot read image {file} ({error})") from error
        logits = model(Tensor(transform(picture)[None])).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[: config.top_k]
        results.append(
            {
                "file": str(file),
                "classes": best.tolist(),
                "names": [names[i] for i in best],
                "probabilities": probabilities[best].tolist(),
            }
        )
        pictures.append(picture)
    for result in results:
        pairs = zip(result["names"], result["probabilities"], strict=True)
        print(f"{result['file']}: " + ", ".join(f"{name} {p:.3f}" for name, p in pairs))
    if config.output_json:
        with atomic_write(config.output_json) as stream:
            stream.write(json.dumps(results, indent=2).encode() + b"\n")
    if config.output_png:
        draw(config.output_png, results, pictures)


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
    """The configuration with the variant and the classes that the checkpoint states."""
    stated = load_checkpoint(config.ckpt_path).metadata or {}
    model, classes = stated.get("variant", config.model), stated.get("num_classes")
    return replace(config, model=model, num_classes=classes or config.num_classes)


def class_names(config: InferConfig) -> list[str]:
    """One name per class: the lines of `class_names`, or else the numbers."""
    if not config.class_names:
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


def draw(path: str, results: list[dict], pictures: list) -> None:
    """A sheet of the images, each under its likeliest class, as PNG."""
    columns = min(PICTURES_PER_ROW, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, result, picture in zip(axes.flat, results, pictures, strict=False):
        axis.imshow(picture)
        axis.set_title(f"{result['names'][0]} ({result['probabilities'][0]:.2f})", fontsize=9)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=100)


if __name__ == "__main__":
    run_cli(main)
