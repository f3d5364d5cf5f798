"""The folder of a run: what it finds there, and what becomes of that."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mindtwins.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint
from mindtwins.config import TrainConfig
from mindtwins.errors import UserError
from mindtwins.training.checkpoints import CheckpointFolder, set_aside

# What a run leaves beside its checkpoints.
_LOGS = ("log.jsonl", "steps.jsonl", "curve.png")
_OTHERS = ("non_finite_step_[0-9]*.txt", "tensorboard/events.out.tfevents.*")


class RunFolder:
    """Where a run writes. It deletes nothing but what `--overwrite` asks for.

    First everything is looked at, by all ranks; `take_over` changes it, when all are agreed.

    Args:
        config: the recipe.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path = Path(config.output_dir)
        self.checkpoints = CheckpointFolder(self.path, config.keep_checkpoint_max)
        self._config = config
        self._damaged: dict[Path, str] = {}

    def read_continued(self) -> Checkpoint | None:
        """The checkpoint from which the run goes on; None if it starts from the beginning.

        Raises:
            UserError: it cannot be read.
        """
        if not self._config.resume:
            return None
        if self._config.resume != "auto":
            return load_checkpoint(self._config.resume)
        checkpoint, self._damaged = self.checkpoints.newest()
        return checkpoint

    def check(self) -> None:
        """Make sure that the run may write here; creates the folder.

        Raises:
            UserError: it holds another run, or cannot be written.
        """
        config = self._config
        if config.overwrite:
            self._check_start_stays()
        elif not config.resume and (self.checkpoints.steps() or self.checkpoints.weights()):
            raise UserError(
                f"{self.path} already holds a run: continue it with --resume, start over with "
                "--overwrite, or choose another --output_dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {self.path}: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to {self.path}: choose another --output_dir")

    def take_over(self, continued: Checkpoint | None) -> list[str]:
        """Make the folder that of this run, which goes on from `continued`.

        Returns:
            Sentences about what was found.

        Raises:
            UserError: what was found cannot be kept; nothing is changed then.
        """
        told = []
        if self._config.overwrite:
            for path in self._files():
                path.unlink()
        elif continued is None and self._existing(_LOGS) and not self._config.resume:
            told.append(f"{self.path} holds the log of a start that saved nothing: it begins anew")
        passed_over = [p for p in self._passed_over(continued) if p not in self._damaged]
        logs: list[Path] = []
        if continued is not None and passed_over:  # it goes back, and so will what is left of them
            logs = [path for path in self._existing(_LOGS) if path not in passed_over]
        names = set_aside(
            dict.fromkeys(self._damaged, "damaged") | dict.fromkeys(passed_over, "set_aside"),
            copied=dict.fromkeys(logs, "set_aside"),
        )
        for path, problem in self._damaged.items():
            told.append(
                f"{problem}; going back to the checkpoint before it (kept as {names[path]})"
            )
        for path in passed_over:
            told.append(f"{path} is not of the run from here on: kept as {names[path]}")
        for path in logs:
            told.append(f"{path} goes back too: as it was, it is {names[path]}")
        self.checkpoints.clean()
        return told

    def _passed_over(self, continued: Checkpoint | None) -> Iterable[Path]:
        """The files that the run would replace or count as its own, though they are not."""
        everything = [*self.checkpoints.steps(), *self.checkpoints.weights()]
        if continued is None:
            return everything
        if self._config.resume == "auto":
            return []
        if continued.path.resolve().parent != self.path.resolve():
            return [*everything, *self._existing(_LOGS)]
        step = continued.stated["progress"]["step"]
        later = self.checkpoints.steps_after(step)
        if later:  # the run goes back
            later += [path for path in self.checkpoints.weights() if _is_later(path, step)]
        return later

    def _check_start_stays(self) -> None:
        files = {path.resolve() for path in self._files()}
        for option in ("ckpt_path", "pretrained", "pretrained_backbone"):
            start = getattr(self._config, option)
            if start and Path(start).resolve() in files:
                raise UserError(
                    f"--overwrite would delete the --{option} {start}: choose another --output_dir"
                )

    def _files(self) -> list[Path]:
        """What a run has written here."""
        others = [path for pattern in _OTHERS for path in self.path.glob(pattern)]
        saved = [*self.checkpoints.steps(), *self.checkpoints.weights()]
        return [*saved, *self._existing(_LOGS), *others]

    def _existing(self, names: Iterable[str]) -> list[Path]:
        return [path for name in names if (path := self.path / name).exists()]


def _is_later(path: Path, step: int) -> bool:
    """Whether weights are of more than `step` steps, as far as they say."""
    try:
        trained = load_checkpoint(path).stated.get("trained", {})
    except DamagedCheckpoint:
        return True
    return trained.get("step", step + 1) > step
