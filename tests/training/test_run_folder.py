"""What a run finds in its folder, and what becomes of it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindtwins.checkpoint import save_checkpoint
from mindtwins.config import TrainConfig
from mindtwins.errors import UserError
from mindtwins.training.run_folder import RunFolder


def run_of(folder: Path, **options: object) -> RunFolder:
    return RunFolder(TrainConfig(output_dir=str(folder), **options))


def fill(folder: Path, *steps: int, best: int | None = None) -> None:
    """The files of a run."""
    folder.mkdir(exist_ok=True)
    tensors = {"w": np.ones(3, np.float32)}
    for step in steps:
        path = folder / f"step_{step:08d}.ckpt"
        save_checkpoint(path, tensors, {"progress": {"step": step}})
    if best is not None:
        save_checkpoint(folder / "best.ckpt", tensors, {"trained": {"step": best}})
    (folder / "steps.jsonl").write_text("{}\n")
    (folder / "notes.jsonl").write_text("mine")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(run: RunFolder) -> list[str]:
    continued = run.read_continued()
    run.check()
    return run.take_over(continued)


@pytest.mark.parametrize(("steps", "best"), [([4], None), ([], 4)])
def test_a_run_is_not_overwritten(tmp_path: Path, steps: list[int], best: int | None):
    fill(tmp_path, *steps, best=best)
    before = names(tmp_path)
    with pytest.raises(UserError, match="already holds a run: continue it with --resume"):
        start(run_of(tmp_path))
    assert names(tmp_path) == before


def test_a_start_that_saved_nothing_holds_nothing(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "non_finite_step_3.txt").write_text("a.jpg")
    before = names(tmp_path)
    assert start(run_of(tmp_path)) == [
        f"{tmp_path} holds the log of a start that saved nothing: it begins anew"
    ]
    assert names(tmp_path) == before


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(tmp_path: Path):
    fill(tmp_path, 4, 8, best=4)
    mine = ["final_of_mine.ckpt", "step_latest.ckpt", "step_00000002.ckpt.damaged"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    start(run_of(tmp_path, overwrite=True))
    assert names(tmp_path) == sorted([*mine, "notes.jsonl"])


@pytest.mark.parametrize(
    ("option", "task", "model"),
    [
        ("ckpt_path", "classification", "svt_small"),
        ("pretrained_backbone", "segmentation", "fpn_svt_small"),
    ],
)
def test_overwriting_keeps_what_it_starts_from(tmp_path: Path, option: str, task: str, model: str):
    fill(tmp_path, 4, best=4)
    options = {option: str(tmp_path / "best.ckpt"), "task": task, "model": model}
    with pytest.raises(UserError, match=f"--overwrite would delete the --{option} "):
        start(run_of(tmp_path, overwrite=True, **options))
    assert (tmp_path / "best.ckpt").exists()


def test_a_damaged_checkpoint_is_kept_under_another_name(tmp_path: Path):
    fill(tmp_path, 4, 8, best=8)
    content = (tmp_path / "step_00000008.ckpt").read_bytes()[:-40]
    (tmp_path / "step_00000008.ckpt").write_bytes(content)
    (told,) = start(run_of(tmp_path, resume="auto"))
    assert told.startswith(f"cannot load {tmp_path}/step_00000008.ckpt: ")
    assert told.endswith("before it (kept as step_00000008.ckpt.damaged)")
    assert (tmp_path / "step_00000008.ckpt.damaged").read_bytes() == content
    assert not (tmp_path / "step_00000008.ckpt").exists()


def test_going_back_keeps_what_came_later(tmp_path: Path):
    fill(tmp_path, 4, 8, 12, best=8)
    content = (tmp_path / "step_00000012.ckpt").read_bytes()
    *told, of_log = start(run_of(tmp_path, resume=str(tmp_path / "step_00000004.ckpt")))
    assert [line.split(": kept as ")[1] for line in told] == [
        "step_00000012.ckpt.set_aside",
        "step_00000008.ckpt.set_aside",
        "best.ckpt.set_aside",
    ]
    log = tmp_path / "steps.jsonl"
    assert of_log == f"{log} goes back too: as it was, it is steps.jsonl.set_aside"
    assert log.read_text() == log.with_name("steps.jsonl.set_aside").read_text() == "{}\n"
    assert (tmp_path / "step_00000012.ckpt.set_aside").read_bytes() == content
    assert (tmp_path / "step_00000004.ckpt").exists()


@pytest.mark.parametrize("fails", ["copying", "renaming"])
def test_what_cannot_be_kept_stays_where_it_is(tmp_path: Path, monkeypatch, fails: str):
    """Going back on a disk that is full, or becomes unwritable after the first checkpoint."""
    fill(tmp_path, 4, 8, 12, best=8)
    before = contents(tmp_path)
    run = run_of(tmp_path, resume=str(tmp_path / "step_00000004.ckpt"))
    rename = Path.rename

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_only(path: Path, target: Path) -> Path:
        if path.name == "step_00000008.ckpt":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, target)

    if fails == "copying":
        monkeypatch.setattr(shutil, "copy2", full)
        said = r"cannot keep .*/steps.jsonl as .*: No space left on device; all files are as they"
    else:
        monkeypatch.setattr(Path, "rename", read_only)
        said = r"cannot keep .*/step_00000008.ckpt as .*: Read-only file system; all files are"
    with pytest.raises(UserError, match=said):
        start(run)
    assert contents(tmp_path) == before


def test_weights_from_before_stay_the_best(tmp_path: Path):
    fill(tmp_path, 4, 8, best=4)
    start(run_of(tmp_path, resume=str(tmp_path / "step_00000004.ckpt")))
    assert (tmp_path / "best.ckpt").exists()


def test_a_run_from_elsewhere_keeps_the_one_that_is_there(tmp_path: Path):
    fill(tmp_path / "here", 2, 8, best=8)
    fill(tmp_path / "there", 4)
    resume = str(tmp_path / "there" / "step_00000004.ckpt")
    start(run_of(tmp_path / "here", resume=resume))
    assert names(tmp_path / "here") == [
        "best.ckpt.set_aside",
        "notes.jsonl",
        "step_00000002.ckpt.set_aside",
        "step_00000008.ckpt.set_aside",
        "steps.jsonl.set_aside",
    ]
    assert "step_00000004.ckpt" in names(tmp_path / "there")


def test_nothing_to_continue_keeps_the_weights_that_are_there(tmp_path: Path):
    fill(tmp_path, best=8)
    start(run_of(tmp_path, resume="auto"))
    assert "best.ckpt.set_aside" in names(tmp_path)


def test_a_plain_continuation_changes_nothing(tmp_path: Path):
    fill(tmp_path, 4, 8, best=8)
    before = names(tmp_path)
    run = run_of(tmp_path, resume="auto")
    assert run.read_continued().metadata == {"progress": {"step": 8}}
    assert start(run) == []
    assert names(tmp_path) == before
