"""The checkpoints of a run: the newest few to continue from, the best and the final weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mindtwins.errors import UserError

_STEP_FILE = re.compile(r"step_(\d+)\.ckpt")


class CheckpointFolder:
    """`step_<n>.ckpt` holds all that a continuation needs after n steps.

    Files are written whole or not at all, so a crash at any moment leaves the earlier ones.

    Args:
        folder: where the files are.
        keep: how many of the newest step files stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        found = [p for p in self.folder.glob("step_*.ckpt") if _STEP_FILE.fullmatch(p.name)]
        return sorted(found, key=_step_of, reverse=True)

    def save(self, step: int, tensors: Mapping[str, np.ndarray], metadata: Mapping) -> Path:
        """Write the state after `step` steps, then remove all but the newest few.

        Files of later steps go too: the run went back to before them and takes another way, or
        they are damaged.

        Raises:
            UserError: it cannot be written (a full disk, say); nothing was removed.
        """
        path = self.folder / f"step_{step:08d}.ckpt"
        save_checkpoint(path, tensors, metadata)
        steps = self.steps()
        current = steps.index(path)
        for other in (*steps[:current], *steps[current + self._keep :]):
            other.unlink()
        return path

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is sound, and what is wrong with those that are newer."""
        problems = []
        for path in self.steps():
            try:
                return load_checkpoint(path), problems
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError(f"no checkpoint in {self.folder} can be read: {'; '.join(problems)}")
        return None, problems


def _step_of(path: Path) -> int:
    return int(_STEP_FILE.fullmatch(path.name)[1])
