"""Runs of train.py for segmentation: several ranks, moving average, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import Job, needs_mpirun

from mindtwins.commands import train, validate
from mindtwins.segmentation.digits import CLASSES, write_segmentation_digits

RECIPE = Path(__file__).parents[2] / "configs/fpn_svt_tiny_digits.yaml"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data, cut to 37 pictures for validation."""
    folder = write_segmentation_digits(tmp_path_factory.mktemp("data") / "digits")
    for kind in ("images", "annotations"):
        for path in sorted((folder / kind / "validation").iterdir())[37:]:
            path.unlink()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def data(digits: Path) -> dict[str, object]:
    return {
        "dataset": "pairs",
        "data_dir": digits,
        "train_split": "training",
        "val_split": "validation",
        "class_names": digits / "classes.txt",
        "ignore_label_zero": "true",
        "resize_scale": "32,32",
    }


def arguments(digits: Path, output: Path, batch_size: int) -> list[str]:
    options = {
        "config": RECIPE,
        "output_dir": output,
        "batch_size": batch_size,
        "image_size": 32,
        "drop_path_rate": 0.1,
        "epoch_steps": 4,
        "epoch_size": 2,
        "warmup_epochs": 0,
        "val_interval": 1,
        "log_interval": 1,
        "save_every_epochs": 1,
        "ema": "true",
    }
    options |= data(digits)
    return [f"--{key}={value}" for key, value in options.items()]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.endurance
@needs_mpirun
def test_two_ranks_learn_what_one_does_with_twice_the_batch(digits: Path, tmp_path: Path):
    """With batch statistics over both ranks, and 37 pictures evaluated by two."""
    job = Job("mpirun", tmp_path, "train.py", *arguments(digits, tmp_path / "two", 4))
    assert job.wait() == 0, job.output()
    train.main(arguments(digits, tmp_path / "one", 8))
    runs = {}
    for name in ("one", "two"):
        losses = [record["train_loss"] for record in read(tmp_path / name / "steps.jsonl")]
        runs[name] = losses, read(tmp_path / name / "log.jsonl")
    assert len(runs["one"][0]) == 8
    assert runs["two"][0] == pytest.approx(runs["one"][0], rel=1e-5)
    for one, two in zip(runs["one"][1], runs["two"][1], strict=True):
        for key in ("test_miou", "test_macc", "test_aacc", "test_miou_ema"):
            assert two[key] == pytest.approx(one[key], abs=0.1)

    # What two ranks found with their final weights, one finds too, to the last digit.
    checkpoint, result = tmp_path / "two/final.ckpt", tmp_path / "result.json"
    options = data(digits) | {"config": RECIPE, "ckpt_path": checkpoint, "output_json": result}
    validate.main([f"--{key}={value}" for key, value in options.items()])
    found, logged = json.loads(result.read_text()), runs["two"][1][-1]
    assert found["images"] == 37
    for key in ("miou", "macc", "aacc"):
        assert found[key] == logged[f"test_{key}"]


@pytest.mark.endurance
def test_a_resumed_run_equals_the_uninterrupted_one(digits: Path, tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output, more in (
        (whole, []),
        (parts, ["--max_steps=3"]),
        (parts, ["--max_steps=3", "--resume"]),  # nothing left to do
        (parts, ["--resume"]),
    ):
        job = Job("", tmp_path, "train.py", *arguments(digits, output, 4), *more)
        assert job.wait() == 0, job.output()
    for name in ("final.ckpt", "final_ema.ckpt", "best.ckpt", "steps.jsonl", "log.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
