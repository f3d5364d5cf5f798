"""The folder of a run's checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindtwins import files
from mindtwins.errors import UserError
from mindtwins.training.checkpoints import CheckpointFolder, set_aside

ROOT = Path(__file__).parents[2]


def save(folder: CheckpointFolder, step: int) -> Path:
    return folder.save(step, {"w": np.full(100, step, np.float32)}, {"step": step})


def test_the_newest_few_are_kept(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.newest() == (None, {})
    for step in (8, 9, 10, 100):
        save(folder, step)
    (tmp_path / "step_latest.ckpt").write_bytes(b"somebody else's")
    assert [p.name for p in folder.steps()] == ["step_00000100.ckpt", "step_00000010.ckpt"]
    checkpoint, problems = folder.newest()
    assert checkpoint.metadata == {"step": 100} and problems == {}
    assert checkpoint.tensors["w"][0] == 100


@pytest.mark.parametrize("keep", [1, 3])
def test_saving_deletes_nothing_of_later_steps(tmp_path: Path, keep: int):
    """They are not this run's: it would have set its own aside."""
    folder = CheckpointFolder(tmp_path, keep=keep)
    for step in (200, 300, 400):
        CheckpointFolder(tmp_path, keep=3).save(step, {"w": np.ones(1, np.float32)}, {})
    save(folder, 250)
    kept = [400, 300, 250] if keep == 1 else [400, 300, 250, 200]
    assert [p.name for p in folder.steps()] == [f"step_{step:08d}.ckpt" for step in kept]
    assert folder.steps_after(250) == folder.steps()[:2]


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
    assert list(problems) == [tmp_path / "step_00000002.ckpt"]
    assert "step_00000002.ckpt" in problems[tmp_path / "step_00000002.ckpt"]
    assert (tmp_path / "step_00000002.ckpt").exists()


@pytest.mark.parametrize(
    ("met", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
        (MemoryError(), UserError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (OSError(errno.EIO, "Input/output error"), UserError),
    ],
)
def test_what_is_no_damage_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, met: BaseException, raised: type
):
    folder = CheckpointFolder(tmp_path, keep=3)
    save(folder, 1)
    save(folder, 2)

    def fail(*args: object, **kwargs: object) -> None:
        raise met

    monkeypatch.setattr("mindspore.train.serialization.Parameter", fail)
    with pytest.raises(raised):
        folder.newest()
    assert [path.name for path in folder.steps()] == ["step_00000002.ckpt", "step_00000001.ckpt"]


def test_a_folder_in_a_checkpoints_place_is_not_passed_over(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=3)
    save(folder, 1)
    (tmp_path / "step_00000002.ckpt").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        folder.newest()


def test_set_aside_never_replaces(tmp_path: Path):
    names = []
    for content in "abc":
        (tmp_path / "x.ckpt").write_text(content)
        names += set_aside({tmp_path / "x.ckpt": "damaged"}).values()
    assert names == ["x.ckpt.damaged", "x.ckpt.damaged_2", "x.ckpt.damaged_3"]
    assert [(tmp_path / name).read_text() for name in names] == ["a", "b", "c"]


@pytest.mark.parametrize("failing", [range(1, 2), range(1, 9)])
def test_set_aside_says_what_it_could_not_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: range
):
    """Where a rename fails once, and where all fail from the second on."""
    paths = [tmp_path / name for name in ("a.ckpt", "b.ckpt")]
    for path in (*paths, tmp_path / "log.jsonl"):
        path.write_text(path.name)
    rename, calls = Path.rename, iter(range(9))

    def renamed(path: Path, target: Path) -> Path:
        if next(calls) in failing:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(UserError) as caught:
        set_aside(dict.fromkeys(paths, "old"), {tmp_path / "log.jsonl": "old"})
    undone = len(failing) == 1
    state = "" if undone else "a.ckpt is a.ckpt.old now, all other "
    ending = f"{state or 'all '}files are as they were"
    assert str(caught.value) == (
        f"cannot keep {paths[1]} as b.ckpt.old: Read-only file system; {ending}"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.ckpt" if undone else "a.ckpt.old": "a.ckpt",
        "b.ckpt": "b.ckpt",
        "log.jsonl": "log.jsonl",
    }


@pytest.mark.parametrize("name", ["step_00000002.ckpt", "best.ckpt", "log.jsonl"])
def test_what_a_kill_left_half_written_goes(tmp_path: Path, name: str):
    program = f"""
import os
from mindtwins.files import replaced_file
with replaced_file({str(tmp_path / name)!r}) as temporary:
    temporary.write_bytes(b"half")
    temporary.with_suffix(".tmp").write_bytes(b"MindSpore's")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False, env={"PYTHONPATH": str(ROOT)})
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".{name}.")
    others = [".step_notes", ".step_00000002.ckpt.notes", ".best.ckpt.abcd1234"]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "mine.txt").write_text("mine")
    CheckpointFolder(tmp_path, keep=3).clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_another_run_is_writing_stays(tmp_path: Path):
    path = tmp_path / ".best.ckpt.abcd1234"
    path.mkdir()
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    CheckpointFolder(tmp_path, keep=3).clean()
    assert path.exists()
    os.close(other)
    CheckpointFolder(tmp_path, keep=3).clean()
    assert not path.exists()


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
