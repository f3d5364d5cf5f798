"""The checkpoints of a run: the newest few to continue from, the best and the final weights."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, save_checkpoint
from mindtwins.errors import UserError

WEIGHTS = ("best.ckpt", "final.ckpt", "final_ema.ckpt")

_STEP_FILE = re.compile(r"step_(\d+)\.ckpt")
# What `files.replaced_file` writes in while it is not done: a folder named after the file.
_TEMPORARY = re.compile(
    r"\.(step_\d+\.ckpt|best\.ckpt|final(_ema)?\.ckpt|(log|steps)\.jsonl|curve\.png)\.[a-z0-9_]{8}"
)


class CheckpointFolder:
    """`step_<n>.ckpt` holds all that a continuation needs after n steps.

    Files are written whole or not at all, so a crash at any moment leaves the earlier ones. What
    a run passes over is renamed, never deleted.

    Args:
        folder: where the files are.
        keep: how many of the newest step files stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        self._lock: int | None = None

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        found = [p for p in self.folder.glob("step_*.ckpt") if _STEP_FILE.fullmatch(p.name)]
        return sorted(found, key=_step_of, reverse=True)

    def steps_after(self, step: int) -> list[Path]:
        """The step files of more than `step` steps, newest first."""
        return [path for path in self.steps() if _step_of(path) > step]

    def weights(self) -> list[Path]:
        """The files of weights alone."""
        return [path for name in WEIGHTS if (path := self.folder / name).exists()]

    def save(self, step: int, tensors: Mapping[str, np.ndarray], metadata: Mapping) -> Path:
        """Write the state after `step` steps, then remove all but the newest few up to it.

        Raises:
            UserError: it cannot be written (a full disk, say); nothing was removed.
        """
        path = self.folder / f"step_{step:08d}.ckpt"
        save_checkpoint(path, tensors, metadata)
        steps = self.steps()
        for older in steps[steps.index(path) + self._keep :]:
            older.unlink()
        return path

    def newest(self) -> tuple[Checkpoint | None, dict[Path, str]]:
        """The newest checkpoint that is sound, and what is wrong with those that are newer.

        Raises:
            UserError: there are checkpoints and all are damaged, or one cannot be read for a reason
                that says nothing of its content.
        """
        damaged: dict[Path, str] = {}
        for path in self.steps():
            try:
                return load_checkpoint(path), damaged
            except DamagedCheckpoint as error:
                damaged[path] = str(error)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} can be read: {'; '.join(damaged.values())}: start "
                "over with --overwrite or in another --output_dir"
            )
        return None, damaged

    def clean(self) -> None:
        """Remove what this project's writers left half-written when they were killed.

        Only where no other run is at work in the folder: it is locked for as long as this process
        lives, and left alone if somebody else holds the lock or the file system has none.
        """
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return
        self._lock = descriptor
        for path in self.folder.iterdir():
            if _is_leftover(path):
                shutil.rmtree(path, ignore_errors=True)


def set_aside(
    renamed: Mapping[Path, str], copied: Mapping[Path, str] | None = None
) -> dict[Path, str]:
    """Give each file the name `<name>.<why>`, numbered where that is taken: all of them or none.

    Args:
        renamed: path to why.
        copied: the same of files that stay, too.

    Returns:
        Path to the new name.

    Raises:
        UserError: that cannot be; what was done is undone, or said where that cannot be either.
    """
    copied = copied or {}
    names: dict[Path, str] = {}
    undoing: list[tuple[Callable[[], object], str]] = []
    # Copies first: they are what a full disk has no room for.
    for path, why in [*copied.items(), *renamed.items()]:
        target = _free_name(path, why)
        try:
            if path in copied:
                remove = partial(target.unlink, missing_ok=True)
                undoing.append((remove, f"the copy {target.name} stayed"))
                shutil.copy2(path, target)
            else:
                path.rename(target)
                undoing.append((partial(target.rename, path), f"{path.name} is {target.name} now"))
        except BaseException as error:
            left = _undo(undoing)
            if not isinstance(error, OSError):
                raise
            state = ", ".join([*left, f"all {'other ' if left else ''}files are as they were"])
            raise UserError(
                f"cannot keep {path} as {target.name}: {error.strerror}; {state}"
            ) from error
        names[path] = target.name
    return names


def _undo(undoing: Sequence[tuple[Callable[[], object], str]]) -> list[str]:
    """Take back what was done, the latest first; returns what is said of what stays."""
    left = []
    for action, otherwise in reversed(undoing):
        try:
            action()
        except OSError:
            left.append(otherwise)
    return left


def _free_name(path: Path, why: str) -> Path:
    number, target = 1, path.with_name(f"{path.name}.{why}")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.{why}_{number}")
    return target


def _step_of(path: Path) -> int:
    match = _STEP_FILE.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _is_leftover(path: Path) -> bool:
    """Whether a path is a writer's temporary folder, with nothing in it but the file's parts."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or path.is_symlink() or not path.is_dir():
        return False
    with contextlib.suppress(OSError):
        stem = match[1].split(".")[0]
        return all(part.is_file() and part.name.startswith(stem) for part in path.iterdir())
    return False
