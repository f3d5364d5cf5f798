"""Classify or segment images with a checkpoint, whose own task, model and classes are taken.

    python infer.py --ckpt_path svt_small.ckpt --images photographs/ --output_png classes.png
    python infer.py --ckpt_path upernet_svt_small.ckpt --images photographs/ --output_dir segmented

A classifier tells each image's likeliest classes. A segmentor writes into output_dir, for each
image, its classes over the picture with a legend (NAME_overlay.png) and as numbers
(NAME_labels.png).
"""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from mindtwins import interruptible  # noqa: F401
from mindtwins.config import InferConfig, parse_config
from mindtwins.data.contact_sheet import draw_sheet
from mindtwins.data.image_folder import EXTENSIONS
from mindtwins.errors import UserError, run_cli
from mindtwins.execution import use_device
from mindtwins.files import atomic_write, check_outputs
from mindtwins.tasks import create_task
from mindtwins.training.distributed import World
from mindtwins.training.recipe import as_trained


def main(argv: list[str]) -> None:
    """Read the configuration, predict, report."""
    config = parse_config(InferConfig, argv, __doc__)
    if not config.ckpt_path:
        raise UserError("ckpt_path is missing: say which checkpoint with --ckpt_path")
    files = find_files(config.images)
    outputs = {"--output_json": config.output_json, "--output_png": config.output_png}
    check_outputs(outputs, [config.ckpt_path, *files])
    use_device(config.device_target, config.allow_tf32)
    task = create_task(as_trained(config))
    model, _ = task.build_model(World())
    results = []
    for prediction in task.predict(model, files):
        tqdm.write(task.describe(prediction))
        results.append(prediction)
    if config.output_png:
        draw_sheet(config.output_png, [task.captioned(prediction) for prediction in results])
    if config.output_json:
        with atomic_write(config.output_json) as stream:
            stream.write(json.dumps(results, indent=2).encode() + b"\n")


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


if __name__ == "__main__":
    run_cli(main)
