"""Predict what is in images with a checkpoint, whose own task, model and classes are taken.

    mindtwins infer --ckpt_path svt_small.ckpt --images photographs/ a.jpg --output_png classes.png
    mindtwins infer --ckpt_path upernet_svt_small.ckpt --images photographs/ --output_dir segmented

A classifier tells each image's likeliest classes. A segmentor writes into output_dir, for each
image, its classes over the picture with a legend (NAME_overlay.png) and as numbers
(NAME_labels.png). A detector draws the objects (NAME_objects.png) and lists them
(NAME_objects.json). The same command after `mpirun -n 8` or as msrun's script shares the images.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindtwins.config import InferConfig, parse_config
from mindtwins.console import nobody_reads
from mindtwins.data.folders import FolderListing
from mindtwins.distribution import launch
from mindtwins.errors import UserError
from mindtwins.files import JsonArray, check_outputs

if TYPE_CHECKING:
    from mindtwins.training.distributed import World


def main(argv: list[str]) -> None:
    """Read the configuration, predict, report."""
    config = parse_config(InferConfig, argv, __doc__)
    rank = launch.begin(config.distribute, config.device_target)
    if not (config.weights or config.onnx_path):
        raise UserError(
            "ckpt_path is missing: say which weights with --ckpt_path or --pretrained, or which"
            " exported file with --onnx_path"
        )
    files = find_files(config.images)
    if rank == 0:
        outputs = {"--output_json": config.output_json, "--output_png": config.output_png}
        check_outputs(outputs, [config.weights or config.onnx_path, *files])
    predict(config, files)


def predict(config: InferConfig, files: list[Path]) -> None:
    """Predict; what is found is written and printed as it comes."""
    # Only here: these import MindSpore, which must not happen before `launch.begin`.
    from tqdm import tqdm

    from mindtwins.data.contact_sheet import draw_sheet
    from mindtwins.execution import use_device
    from mindtwins.tasks import create_task, exported_task
    from mindtwins.training.distributed import join_world

    use_device(config.device_target, config.allow_tf32)
    world = join_world(config.distribute)
    if config.onnx_path:
        task, model = exported_task(config)
    else:
        task = create_task(config)
        model, _ = task.build_model(world)
    captioned = []
    with JsonArray(config.output_json if world.is_main else None) as results:
        for prediction in in_order(task.predict(model, files[world.rank :: world.size]), world):
            results.add(prediction)
            tqdm.write(task.describe(prediction))
            captioned.append(task.captioned(prediction))
            if nobody_reads() and not (config.output_json or config.output_png):
                break
    if config.output_png and captioned:
        draw_sheet(config.output_png, captioned, config.exif_orientation)


def in_order(predictions: Iterator[dict], world: World) -> Iterator[dict]:
    """Yield every rank's predictions on rank 0, in the order of the images; elsewhere nothing.

    The ranks take turns with the images: rank r has the images r, r + size, ...
    """
    if world.size == 1:
        yield from predictions
        return
    while True:
        own = next(predictions, None)
        texts = world.exchange("predictions", json.dumps(own).encode())
        found = [prediction for text in texts if (prediction := json.loads(text)) is not None]
        if not found:  # every rank has come to its end
            return
        if world.is_main:
            yield from found


def find_files(images: Sequence[str]) -> list[Path]:
    """The images named, those of patterns, and all that lie in folders, each once.

    Raises:
        UserError: a name stands for nothing, or a folder holds no images.
    """
    if not images:
        raise UserError("images is missing: name images, folders or patterns with --images")
    files: dict[Path, None] = {}
    for name in images:
        paths = [Path(name)]
        if not paths[0].exists():
            paths = [Path(found) for found in sorted(glob.glob(name, recursive=True))]
        if not paths:
            raise UserError(f"{name} does not exist: --images takes images, folders and patterns")
        for path in paths:
            files |= dict.fromkeys(images_below(path) if path.is_dir() else [path])
    return list(files)


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and the folders in it, sorted by name."""
    listing = FolderListing(folder)
    (files,) = listing.files([str(folder)])
    listing.tell()
    if not files:
        raise UserError(f"{folder} holds no images: name a folder of images, or one of them")
    return [Path(file) for file in files]
