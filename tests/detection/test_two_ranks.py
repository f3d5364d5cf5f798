"""Runs of train.py on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import CATEGORIES, annotation
from jobs import Job, needs_mpirun
from PIL import Image

from mindtwins.checkpoint import load_checkpoint
from mindtwins.commands import train

WIDTH, HEIGHT = 96, 64


def write_split(root: Path, name: str, photograph: np.ndarray, count: int) -> None:
    """Pictures of one size in COCO's layout, with one to three objects of other places each."""
    (root / name).mkdir()
    rng = np.random.default_rng(count)
    images, annotations = [], []
    for number in range(count):
        pixels = photograph[20 * number :, 40 * number :][:HEIGHT, :WIDTH]
        Image.fromarray(pixels).save(root / name / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
        images.append(image)
        for _ in range(1 + number % 3):
            box = [*map(int, rng.integers(0, 30, 2)), *map(int, rng.integers(12, 34, 2))]
            category = CATEGORIES[len(annotations) % 3]["id"]
            annotations.append(annotation(len(annotations) + 1, number, category, box))
    content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(photograph: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    write_split(root, "train2017", photograph, 12)
    write_split(root, "val2017", photograph, 3)
    return root


# What ranks exchange is the same for every task, and is held to one rank's in the slow tier too.
@pytest.mark.endurance
@pytest.mark.parametrize("name", ["retinanet_svt_tiny", "maskrcnn_svt_tiny"])
@needs_mpirun
def test_two_ranks_learn_what_one_does_with_two_micro_batches(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """Not with twice the batch: a loss is divided by what counts in the images of one pass.

    With other numbers of objects on each rank, stochastic depth and the moving average.
    """
    recipe = {
        **{"task": "detection", "model": name, "dataset": "coco", "data_dir": folder},
        **{"num_classes": 3, "resize_scale": f"{WIDTH},{HEIGHT}", "size_steps": 1},
        **{"batch_size": 2, "epoch_size": 2, "epoch_steps": 3, "drop_path_rate": 0.2},
        **{"scheduler": "step", "lr_epochs": 1, "lr": 1e-3, "warmup_epochs": 0},
        **{"clip_grad": 1.0, "ema": "true", "val_interval": 2, "log_interval": 1},
    }
    if name.startswith("maskrcnn"):
        recipe["region_samples"] = 40  # of which some are drawn
    arguments = [f"--{key}={value}" for key, value in recipe.items()]
    two, one = tmp_path / "two", tmp_path / "one"
    job = Job("mpirun", tmp_path, "train.py", *arguments, f"--output_dir={two}")
    assert job.wait() == 0, job.output()
    train.main([*arguments, f"--output_dir={one}", "--gradient_accumulation_steps=2"])
    losses = [
        [json.loads(line)["train_loss"] for line in (run / "steps.jsonl").read_text().splitlines()]
        for run in (two, one)
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for file in ("final.ckpt", "final_ema.ckpt"):
        found, expected = (load_checkpoint(run / file).tensors for run in (two, one))
        weights = [np.concatenate([x.ravel() for x in each.values()]) for each in (found, expected)]
        error = np.linalg.norm(weights[0] - weights[1]) / np.linalg.norm(weights[1])
        assert error < 1e-5, file
