"""The log of a run: JSON lines per epoch and per step, and its curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindtwins.errors import UserError
from mindtwins.files import atomic_write

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class RunLog:
    """`log.jsonl` has a line per epoch with the keys of the authors' logs, `steps.jsonl` per step.

    Args:
        folder: where the files are.
        curves: the test metrics that are drawn, by key, and what they are called.
        tensorboard: also write summaries for TensorBoard to a folder of that name: the same keys,
            after `epoch/` (over epochs) or `step/` (over steps).

    Raises:
        UserError: the package that writes the summaries is not installed.
    """

    def __init__(self, folder: Path, curves: Mapping[str, str], tensorboard: bool = False) -> None:
        self._curves = curves
        self.epochs = folder / "log.jsonl"
        self.steps = folder / "steps.jsonl"
        self.curve = folder / "curve.png"
        self._folder = folder / "tensorboard"
        # Opened with the first summary: opening writes a file.
        self._open_summaries = _summary_writer() if tensorboard else None
        self._summaries: SummaryWriter | None = None
        self._first_step: int | None = None

    def rewind(self, epoch: int, step: int) -> None:
        """Forget what was logged from `epoch` and `step` on: it will be done again.

        TensorBoard's files stay as they are; the next one says from which step on it counts.
        """
        self._first_step = step
        _keep_lines(self.epochs, lambda record: record["epoch"] < epoch)
        _keep_lines(self.steps, lambda record: record["step"] < step)

    def add_epoch(self, **record: float) -> None:
        """Log an epoch and draw the curve anew."""
        _append(self.epochs, record)
        self._draw()
        self._summarize("epoch", record)

    def add_step(self, **record: float | None) -> None:
        """Log a step."""
        _append(self.steps, record)
        self._summarize("step", record)

    def _summarize(self, axis: str, record: Mapping[str, float | None]) -> None:
        if self._open_summaries is None:
            return
        if self._summaries is None:
            self._summaries = self._open_summaries(
                str(self._folder), purge_step=self._first_step, write_to_disk=True
            )
        for key, value in record.items():
            if key != axis and value is not None:
                self._summaries.add_scalar(f"{axis}/{key}", value, record[axis])

    def close(self) -> None:
        """Write out the summaries that still wait."""
        if self._summaries is not None:
            self._summaries.close()

    def _draw(self) -> None:
        from matplotlib.figure import Figure  # a second to import: only rank 0 needs it

        records = [json.loads(line) for line in self.epochs.read_text().splitlines()]
        figure = Figure(figsize=(10, 4), layout="constrained")
        losses = {"train_loss": "train", "test_loss": "test"}
        for axis, curves, unit in zip(
            figure.subplots(1, 2),
            (losses, self._curves),
            ("loss", "test metrics in %"),
            strict=True,
        ):
            for key, label in curves.items():
                points = [(r["epoch"], r[key]) for r in records if key in r]
                if points:
                    axis.plot(*zip(*points, strict=True), label=label)
                    axis.legend()
            axis.set(xlabel="epoch", ylabel=unit)
        with atomic_write(self.curve) as file:
            figure.savefig(file, format="png", dpi=120)


def _summary_writer() -> type[SummaryWriter]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard needs a package: pip install tensorboardX") from error
    return SummaryWriter


def _append(path: Path, record: dict) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _keep_lines(path: Path, wanted: Callable[[dict], bool]) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut short by a crash
            continue
        if wanted(record):
            kept.append(line + "\n")
    with atomic_write(path) as file:
        file.write("".join(kept).encode())
