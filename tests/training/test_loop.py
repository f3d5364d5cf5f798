"""What a run says on its way, and what it takes over from the run that it continues."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindtwins.checkpoint import load_checkpoint, save_checkpoint
from mindtwins.config import TrainConfig
from mindtwins.config.parsing import COMMAND_LINE
from mindtwins.errors import UserError
from mindtwins.tasks import create_task
from mindtwins.training import loop
from mindtwins.training.loop import Trainer
from mindtwins.training.step import StepResult


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 2 classes, 22 images to train with."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 22), ("val", 4)):
        for i in range(count):
            path = folder / split / str(i % 2) / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return folder


def trainer_of(pictures: Path, folder: Path, **options: object) -> Trainer:
    defaults = {
        "model": "svt_tiny",
        "num_classes": 2,
        "image_size": 32,
        "batch_size": 8,
        "epoch_size": 10,
        "data_dir": str(pictures),
        "output_dir": str(folder),
        "num_parallel_workers": 1,
    }
    return Trainer(TrainConfig(**defaults | options), create_task)


def pretend_steps(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that change nothing and compile nothing."""

    class Metrics:
        score = 50.0

        def record(self) -> dict:
            return {"acc1": 50.0}

        def __str__(self) -> str:
            return "top-1 50 %"

    monkeypatch.setattr(trainer.train_state, "step", lambda *_: StepResult(0.5, 1.0, True))
    monkeypatch.setattr(trainer.evaluator, "evaluate", Metrics)


def test_what_is_hardly_meant_is_told(pictures: Path, tmp_path: Path, capsys):
    options = {"lr": 1e-3, "lr_reference_batch": 2048, "min_lr": 1e-5}
    trainer_of(pictures, tmp_path, **options).introduce()
    said = capsys.readouterr().out
    assert (
        "notice: min_lr 1e-05 is above the peak learning rate 3.90625e-06, so the rate rises"
        in said
    )
    assert "notice: each pass leaves out 6 of the 22 training images" in said
    assert "2 steps of 8 images" in said


def test_what_is_usual_is_not(pictures: Path, tmp_path: Path, capsys):
    trainer_of(pictures, tmp_path, batch_size=22).introduce()
    assert "notice" not in capsys.readouterr().out


def test_the_notice_about_workers_is_given_once(pictures: Path, tmp_path: Path, caplog):
    trainer_of(pictures, tmp_path, num_parallel_workers=1003)  # a number of this test's own
    assert caplog.text.count("num_parallel_workers lowered from 1003") == 1


def test_the_default_of_workers_fits_the_machine_in_silence(
    pictures: Path, tmp_path: Path, caplog, monkeypatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    trainer_of(pictures, tmp_path, num_parallel_workers=TrainConfig.num_parallel_workers)
    assert "num_parallel_workers" not in caplog.text


def test_an_epoch_without_a_terminal_has_lines(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LINES", 0.0)
    trainer = trainer_of(pictures, tmp_path, batch_size=2, max_steps=4)
    pretend_steps(trainer, monkeypatch)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "left in the epoch" in line]
    # Not of the first step, which compiles.
    assert [line.split(",")[0] for line in lines] == [
        "epoch 0: step 2 of 11",
        "epoch 0: step 3 of 11",
        "epoch 0: step 4 of 11",
    ]
    assert "loss 0.5000" in lines[0] and "images/s" in lines[0] and " in all" in lines[0]


def test_lines_come_once_a_minute(pictures: Path, tmp_path: Path, monkeypatch, capsys):
    trainer = trainer_of(pictures, tmp_path, batch_size=2, max_steps=11)
    pretend_steps(trainer, monkeypatch)
    trainer.train()
    said = capsys.readouterr().out
    assert "left in the epoch" not in said
    assert "; top-1 50 %" not in said and "test top-1 50 %; " in said


@pytest.mark.slow
def test_a_speed_that_was_not_measured_is_not_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    trainer = trainer_of(pictures, tmp_path, batch_size=22, max_steps=2)
    pretend_steps(trainer, monkeypatch)
    trainer.train()
    first, second = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")
    )
    assert first.endswith("; speed not measured")
    assert second.endswith(" images/s") and not second.endswith("; 0 images/s")


@pytest.mark.slow
def test_a_run_from_before_the_choice_mixes_as_it_did(pictures: Path, tmp_path: Path, monkeypatch):
    trainer = trainer_of(pictures, tmp_path, max_steps=1, mixup=0.8)
    assert trainer.identity["recipe"]["mixup_draws"] == "rank"
    pretend_steps(trainer, monkeypatch)
    trainer.train()
    saved = load_checkpoint(tmp_path / "step_00000001.ckpt")
    recipe = {k: v for k, v in saved.metadata["recipe"].items() if k != "mixup_draws"}
    old = tmp_path / "old"
    old.mkdir()
    save_checkpoint(
        old / "step_00000001.ckpt", saved.tensors, dict(saved.metadata) | {"recipe": recipe}
    )
    for _ in range(2):  # also when it is continued again
        trainer = trainer_of(pictures, old, mixup=0.8, resume="auto", max_steps=2)
        assert trainer.identity["recipe"]["mixup_draws"] == "global"
        assert trainer.loader._pipeline.load_batch.mixing.draws == "global"
        pretend_steps(trainer, monkeypatch)
        trainer.train()
    # Asked for by a flag, it is another recipe.
    config = dataclasses.replace(trainer.config, mixup_draws="rank")
    object.__setattr__(config, "stated", {"mixup_draws": COMMAND_LINE})
    with pytest.raises(UserError, match=r"mixup_draws: global -> rank"):
        Trainer(config, create_task).train()


def test_a_start_without_a_checkpoint_is_started_over(pictures: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    trainer = trainer_of(pictures, tmp_path, max_steps=1, log_interval=1)
    pretend_steps(trainer, monkeypatch)
    trainer.train()
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0]
    with pytest.raises(UserError, match="already holds a run"):
        trainer_of(pictures, tmp_path).train()


@pytest.mark.slow
def test_readers_that_are_gone_do_not_end_a_run(pictures: Path, tmp_path: Path, monkeypatch):
    trainer = trainer_of(pictures, tmp_path, max_steps=1)
    pretend_steps(trainer, monkeypatch)

    def closed(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(loop.tqdm, "write", closed)
    trainer.train()
    assert (tmp_path / "step_00000001.ckpt").exists()
