"""The folder of a run's checkpoints."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from mindtwins import files
from mindtwins.errors import UserError
from mindtwins.training.checkpoints import CheckpointFolder


def save(folder: CheckpointFolder, step: int) -> Path:
    return folder.save(step, {"w": np.full(100, step, np.float32)}, {"step": step})


def test_the_newest_few_are_kept(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.newest() == (None, [])
    for step in (8, 9, 10, 100):
        save(folder, step)
    (tmp_path / "step_latest.ckpt").write_bytes(b"somebody else's")
    assert [p.name for p in folder.steps()] == ["step_00000100.ckpt", "step_00000010.ckpt"]
    checkpoint, problems = folder.newest()
    assert checkpoint.metadata == {"step": 100} and problems == []
    assert checkpoint.tensors["w"][0] == 100


@pytest.mark.parametrize("keep", [1, 3])
def test_what_was_just_written_stays(tmp_path: Path, keep: int):
    """A run that went back to an earlier step takes another way from there."""
    folder = CheckpointFolder(tmp_path, keep=keep)
    for step in (100, 200, 300, 400):
        save(folder, step)
    save(folder, 250)
    kept = [250] if keep == 1 else [250, 200]
    assert [p.name for p in folder.steps()] == [f"step_{step:08d}.ckpt" for step in kept]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_reason(tmp_path: Path, damage):
    folder = CheckpointFolder(tmp_path, keep=3)
    save(folder, 1)
    damage(save(folder, 2))
    checkpoint, problems = folder.newest()
    assert checkpoint.metadata == {"step": 1}
    assert len(problems) == 1 and "step_00000002.ckpt" in problems[0]


def test_all_damaged_is_an_error(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=3)
    flip_a_bit(save(folder, 1))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        folder.newest()


def test_a_full_disk_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = CheckpointFolder(tmp_path, keep=1)
    path = save(folder, 1)
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(UserError, match="No space left on device"):
        save(folder, 2)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
