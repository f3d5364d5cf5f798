"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from mindtwins.training.log import RunLog


def epoch(number: int) -> dict:
    return {
        "train_lr": 1e-3,
        "train_loss": 1.0 / (number + 1),
        "test_loss": 2.0,
        "test_acc1": 50.0,
        "test_acc5": 90.0,
        "epoch": number,
        "n_parameters": 3,
    }


def test_lines_curve_and_rewinding(tmp_path: Path):
    log = RunLog(tmp_path)
    log.rewind(0, 0)  # nothing there yet
    for number in range(4):
        log.add_epoch(**epoch(number))
    for step in range(40):
        log.add_step(step=step, train_loss=0.5)
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.size == (1200, 480)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [epoch(number) for number in range(4)]

    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": 40, "tra')  # killed while writing
    log.rewind(epoch=2, step=25)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:2]
    steps = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps] == list(range(25))
