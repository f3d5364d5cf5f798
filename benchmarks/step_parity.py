"""Twenty training steps beside PyTorch's: the table of losses and weights.

    python -m benchmarks.step_parity [--models svt_small pcpvt_small]

The same random weights and batch, AdamW with clipping, decay groups, warmup and cosine. Largest
relative deviation of the 20 losses, and the relative L2 distance of all weights after them; beside
them PyTorch's own rounding, the same run in float32 against float64, on the CPU.
"""

from __future__ import annotations

import tempfile

import numpy as np

from benchmarks.command import Table, parser
from benchmarks.inputs import CLASSES, EAGER, MINDTWINS
from benchmarks.workers import start
from mindtwins import list_models
from mindtwins.errors import UserError, run_cli
from mindtwins.training.schedule import CosineSchedule

SMALL = ("svt_small", "pcpvt_small")
STEPS, BATCH, SIZE = 20, 8, 64
TOLERATED = 1e-4
SCHEDULE = CosineSchedule(1e-3, 1e-5, 1e-6, 1, 10, steps_per_epoch=2)

Run = tuple[np.ndarray, np.ndarray]  # losses, and all weights in one


def main(argv: list[str]) -> None:
    """Train and print."""
    command, models = parser(__doc__), list_models()
    command.add_argument(
        "--models", nargs="+", default=["svt_small", "pcpvt_small"], choices=models
    )
    options = command.parse_args(argv)
    rates = [SCHEDULE(number) for number in range(3 if options.quick else STEPS)]
    table = Table("step parity", "model", "losses", "PyTorch alone", "weights", "PyTorch alone")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 3, SIZE, SIZE)).astype(np.float32)
    targets = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
    for model in ["svt_tiny"] if options.quick else options.models:
        with (
            tempfile.TemporaryDirectory() as folder,
            start(EAGER, options.torch_python) as theirs,
            start(MINDTWINS) as ours,
        ):
            np.savez(f"{folder}/batch.npz", images=images, targets=targets)
            task = {"model": model, "folder": folder, "rates": rates}
            losses = {
                "float32": theirs.ask("train", **task, dtype="float32")["losses"],
                "float64": theirs.ask("train", **task, dtype="float64")["losses"],
                MINDTWINS: ours.ask("train", **task, device=options.device_target)["losses"],
            }
            runs = {name: (np.array(losses[name]), load(f"{folder}/{name}.npz")) for name in losses}
        found = deviations(runs[MINDTWINS], runs["float32"])
        floors = deviations(runs["float32"], runs["float64"])
        numbers = (found[0], floors[0], found[1], floors[1])
        table.row(model, *(f"{number:.1e}" for number in numbers))
        if not max(found) <= TOLERATED:
            raise UserError(f"{model} is more than {TOLERATED:g} from PyTorch")


def load(path: str) -> np.ndarray:
    """All weights of a model in one, in the order of their names."""
    with np.load(path) as arrays:
        weights = [arrays[name] for name in sorted(arrays)]
    return np.concatenate([array.ravel().astype(np.float64) for array in weights])


def deviations(found: Run, expected: Run) -> tuple[float, float]:
    """Largest relative deviation of the losses, relative L2 distance of the weights."""
    distance = np.linalg.norm(found[1] - expected[1]) / np.linalg.norm(expected[1])
    return float(np.abs(found[0] / expected[0] - 1).max()), float(distance)


if __name__ == "__main__":
    run_cli(main)
