"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from mindtwins.training.log import RunLog

CURVES = {"test_acc1": "top-1", "test_acc5": "top-5"}


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


@pytest.mark.slow
def test_lines_curve_and_rewinding(tmp_path: Path):
    log = RunLog(tmp_path, CURVES)
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


def test_tensorboard_summaries_hold_the_same_numbers(tmp_path: Path):
    log = RunLog(tmp_path, CURVES, tensorboard=True)
    log.add_step(step=3, train_loss=0.5, grad_norm=None)
    log.add_epoch(**epoch(1))
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in read_events(file.read_bytes())
        for value in event.summary.value
    }
    assert scalars["step/train_loss", 3] == 0.5
    assert scalars["epoch/test_acc1", 1] == 50.0
    assert ("step/grad_norm", 3) not in scalars


def test_tensorboard_is_opened_by_the_first_summary(tmp_path: Path):
    """So a dry run and a refused one leave nothing; and a resumed run says where it goes on."""
    log = RunLog(tmp_path, CURVES, tensorboard=True)
    log.rewind(epoch=0, step=3)
    assert not (tmp_path / "tensorboard").exists()
    log.add_step(step=3, train_loss=0.5)
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    started = [event for event in read_events(file.read_bytes()) if event.session_log.status]
    assert [event.step for event in started] == [3]


def read_events(data: bytes) -> list[Event]:
    """Records of a length (8 bytes), its checksum (4), an event, and its checksum (4)."""
    events = []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events
