"""Training on two ranks: real processes under mpirun and msrun, on handwritten digits."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import ROOT, Job, needs_mpirun

from mindtwins.config import TrainConfig, parse_config
from mindtwins.data.digits import write_digits
from mindtwins.errors import UserError
from mindtwins.tasks import create_task
from mindtwins.training.checkpoints import CheckpointFolder
from mindtwins.training.distributed import World
from mindtwins.training.loop import Trainer

RECIPE = ROOT / "configs/svt_tiny_digits.yaml"
TRAIN_IMAGES, VAL_IMAGES = 80, 37  # 37: no multiple of 2 ranks x 8 images


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, create_task)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with the digits, and lists of a few of them."""
    folder = write_digits(tmp_path_factory.mktemp("data") / "digits")
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        paths = sorted((folder / split).glob("*/*.png"), key=lambda path: path.name)[:count]
        lines = [f"{path.relative_to(folder)} {path.parent.name}\n" for path in paths]
        (folder.parent / f"{split}.txt").write_text("".join(lines))
    return folder


def arguments(digits: Path, output: Path, batch_size: int = 8, **changes: object) -> list[str]:
    options = {
        "config": RECIPE,
        "dataset": "list",
        "data_dir": digits,
        "train_list": digits.parent / "train.txt",
        "val_list": digits.parent / "val.txt",
        "output_dir": output,
        "batch_size": batch_size,
        "eval_batch_size": 8,
        "epoch_size": 2,
        "warmup_epochs": 1,
        "ema": "true",
        "log_interval": 1,
        "mixup_draws": "global",  # else two ranks mix otherwise than one
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(output: Path) -> list[float]:
    records = read(output / "steps.jsonl")
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["train_loss"] for record in records]


@pytest.mark.slow
@needs_mpirun
def test_two_ranks_learn_what_one_does_with_twice_the_batch(digits, tmp_path, monkeypatch):
    job = Job("mpirun", tmp_path, "train.py", *arguments(digits, tmp_path / "two"))
    assert job.wait() == 0, job.output()
    assert job.processes() == []
    assert job.output().count("global batch 16 = 8 images x 2 ranks") == 1  # only rank 0 prints

    config = parse_config(TrainConfig, arguments(digits, tmp_path / "one", 16), "")
    trainer_of(config).train()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 10
    assert two == pytest.approx(one, rel=1e-5)

    # What two ranks found with their final weights, one finds too, to the last digit.
    task = create_task(replace(config, ckpt_path=str(tmp_path / "two/final.ckpt")))
    model, _ = task.build_model(World())
    metrics = task.evaluator(model, task.find_data("val"), World()).evaluate()
    record = read(tmp_path / "two/log.jsonl")[-1]
    assert metrics.images == VAL_IMAGES
    assert metrics.top1 == record["test_acc1"]
    assert metrics.top5 == record["test_acc5"]
    assert metrics.loss == record["test_loss"]


@pytest.mark.slow
def test_killed_rank_ends_the_job_with_its_number_and_a_checkpoint(digits, tmp_path):
    output = tmp_path / "out"
    job = Job(
        *("msrun", tmp_path, "train.py"),
        *arguments(digits, output, epoch_size=1000, save_every_steps=1, val_interval=1000),
    )
    job.wait_until(lambda: len(CheckpointFolder(output, 3).steps()) >= 2)
    os.kill(job.process_of(1), signal.SIGKILL)
    killed = time.monotonic()
    assert job.wait() != 0
    assert time.monotonic() - killed < 60
    assert "rank 1 died" in job.output() + (tmp_path / "scheduler.log").read_text()
    checkpoint, problems = CheckpointFolder(output, 3).newest()
    assert checkpoint is not None
    assert problems == {}
    time.sleep(2)  # workers of the data pipeline look for their parent once a second
    assert job.processes() == []


@pytest.mark.slow
def test_ranks_that_start_differently_are_found_out(digits, tmp_path):
    trainer = trainer_of(parse_config(TrainConfig, arguments(digits, tmp_path), ""))

    class Pretended(World):
        def exchange(self, label: str, payload: bytes = b"") -> list[bytes]:
            return [payload, payload if label != "weights or optimizer state" else b"other"]

    trainer.world = Pretended(0, 2)
    with pytest.raises(UserError, match="rank 1 starts with another weights or optimizer state"):
        trainer._check_same_start()


@pytest.mark.endurance
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpirun), "msrun"])
@pytest.mark.parametrize("victim", [0, 1])
def test_two_ranks_resume_bit_for_bit_after_a_kill(digits, tmp_path, launcher, victim):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"epoch_size": 6, "save_every_steps": 3}
    job = Job(launcher, tmp_path, "train.py", *arguments(digits, whole, **options))
    assert job.wait() == 0, job.output()

    job = Job(launcher, tmp_path, "train.py", *arguments(digits, killed, **options))
    job.wait_until(lambda: (killed / "step_00000009.ckpt").exists())
    os.kill(job.process_of(victim), signal.SIGKILL)
    assert job.wait(60) != 0
    job = Job(launcher, tmp_path, "train.py", *arguments(digits, killed, **options), "--resume")
    assert job.wait() == 0, job.output()
    assert losses(killed) == losses(whole)
    assert (killed / "final.ckpt").read_bytes() == (whole / "final.ckpt").read_bytes()
    assert read(killed / "log.jsonl") == read(whole / "log.jsonl")


@pytest.mark.endurance
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpirun), "msrun"])
def test_bad_file_on_one_rank_stops_after_the_last_step(digits, tmp_path, launcher):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job = Job(launcher, tmp_path, "train.py", *arguments(digits, whole, 2))
    assert job.wait() == 0, job.output()

    # An image of rank 1 in the first epoch's last step, damaged before it is read ahead.
    trainer = trainer_of(parse_config(TrainConfig, arguments(digits, tmp_path / "none", 4), ""))
    sampler = replace(trainer.loader.sampler, batch_size=2, rank=1, world=2)
    _, slots = sampler.slots(19, 0)
    bad = Path(trainer.loader.dataset.paths[sampler.order(0)[slots[0]]])
    content = bad.read_bytes()
    job = Job(launcher, tmp_path, "train.py", *arguments(digits, stopped, 2))
    job.wait_until(lambda: "compiling" in job.output())
    bad.write_bytes(b"")
    try:
        code = job.wait(120)
    finally:
        bad.write_bytes(content)
    assert code != 0
    assert f"rank 1 failed: cannot read image {bad}" in job.output()
    assert "stopped after step 19 of 40; continue with: " in job.output()
    assert job.processes() == []

    job = Job(launcher, tmp_path, "train.py", *arguments(digits, stopped, 2), "--resume")
    assert job.wait() == 0, job.output()
    assert losses(stopped) == losses(whole)
    assert (stopped / "final.ckpt").read_bytes() == (whole / "final.ckpt").read_bytes()


@pytest.mark.endurance
@needs_mpirun
def test_signal_to_one_rank_stops_all_after_the_same_step(digits, tmp_path):
    output = tmp_path / "out"
    job = Job("mpirun", tmp_path, "train.py", *arguments(digits, output, epoch_size=1000))
    job.wait_until(lambda: (output / "steps.jsonl").exists())
    os.kill(job.process_of(1), signal.SIGTERM)
    assert job.wait(60) == 128 + signal.SIGTERM
    assert "continue with: mpirun -n 2 " in job.output()
    checkpoint, _ = CheckpointFolder(output, 3).newest()
    assert checkpoint.metadata["progress"]["step"] == len(losses(output))


@pytest.mark.endurance
@pytest.mark.parametrize("launcher", [pytest.param("mpirun", marks=needs_mpirun), "msrun"])
def test_validation_on_three_ranks_equals_one(digits, tmp_path, launcher):
    config = parse_config(TrainConfig, arguments(digits, tmp_path / "none"), "")
    trainer = trainer_of(replace(config, dry_run=True))
    trainer.folder.mkdir()
    trainer._save_weights("best.ckpt", "model")
    results = []
    for name, ranks in (("", 1), (launcher, 3)):
        path = tmp_path / f"{ranks}.json"
        words = arguments(digits, tmp_path / "none", 8, ckpt_path=tmp_path / "none/best.ckpt")
        job = Job(name, tmp_path, "validate.py", *words, "--output_json", path, ranks=ranks)
        assert job.wait() == 0, job.output()
        results.append(json.loads(path.read_text()))
    for key in ("top1", "top5", "loss", "images"):
        assert results[0][key] == results[1][key]
    assert results[0]["images"] == VAL_IMAGES
