"""The parity table: every model converted from a PyTorch file and compared with it.

    python -m benchmarks.parity [--models svt_small upernet_svt_small ...]
    python -m benchmarks.parity --device_target GPU --levels TF32 O1 O2 O3

Weights are random (none trivially 0 or 1) and, in every second row, amplified to bring mistakes in
the norms out; images are two photographs. Deviations are in standard deviations of the reference's
output, and beside them stands PyTorch's own rounding: float32 against float64 of the same model,
on the CPU. Of a segmentor the maps are the backbone's and the neck's, the logits also the auxiliary
head's. TF32 and the fp16 levels see sixteen images, and the table says how often the class is the
same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.command import Table, parser
from benchmarks.inputs import EAGER, MINDTWINS, is_segmentor, photographs
from benchmarks.workers import Worker, start, torch_environment
from mindtwins import list_models, list_segmentors
from mindtwins.errors import UserError, run_cli

LEVELS = ("O0", "TF32", "O1", "O2", "O3")
WEIGHTS = ("as converted", "amplified")
# The limits of the tests, and how many times PyTorch's own rounding error a deviation may be where
# those are not reached.
MAP_LIMIT, LOGITS_LIMIT, TOLERATED = 1e-5, 5e-6, 4.0

MORE = "more than rounding"

Numbers = Mapping[str, float]


def main(argv: list[str]) -> None:
    """Compare and print."""
    command, models = parser(__doc__), [*list_models(), *list_segmentors()]
    command.add_argument("--models", nargs="+", default=models, choices=models, metavar="MODEL")
    command.add_argument("--levels", nargs="+", default=["O0"], choices=LEVELS)
    options = command.parse_args(argv)
    names = ["svt_tiny", "fpn_svt_tiny"] if options.quick else options.models
    columns = ("weights", "worst map", "PyTorch alone", "logits", "PyTorch alone", "verdict")
    table = Table("parity", "model", *columns, width=12)
    failed = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        theirs = stack.enter_context(start(EAGER, options.torch_python))
        # To read a file of torch's takes PyTorch, which the others keep away from MindSpore.
        converter = stack.enter_context(Worker("mindspore_side", torch_environment()))
        # MindSpore is told once whether TF32 is allowed.
        ours = {tf32: stack.enter_context(start(MINDTWINS)) for tf32 in (False, True)}
        for name in names:
            place = {"model": name, "folder": folder}
            # A segmentor's photographs fill no whole patches and windows.
            size = (200, 260) if is_segmentor(name) else (224, 224)
            np.save(
                f"{folder}/{name}.npy", photographs(2 if options.levels == ["O0"] else 16, *size)
            )
            theirs.ask("reference", **place, weights=WEIGHTS)
            converter.ask("convert", **place)
            for level in options.levels:
                kinds = WEIGHTS if level == "O0" else WEIGHTS[:1]
                device = options.device_target
                worker = ours[level == "TF32"]
                worker.ask("outputs", **place, device=device, level=level, weights=kinds)
                for weights in kinds:
                    label = name if level == "O0" else f"{name}, {level}"
                    found, floors, same = compare(Path(folder), name, weights)
                    said = verdict(found, floors) if level == "O0" else f"{same:.0%} of classes"
                    pairs = zip(worst(found), worst(floors), strict=True)
                    table.row(label, weights, *(f"{x:.1e}" for pair in pairs for x in pair), said)
                    failed += [name] if said == MORE else []
    if failed:
        raise UserError(f"more than rounding apart: {', '.join(failed)}")


def compare(folder: Path, model: str, weights: str) -> tuple[Numbers, Numbers, float]:
    """How far outputs are from PyTorch's, those from float64, and the share of equal classes."""
    paths = [folder / f"{model}.{weights}.{name}.npz" for name in ("found", "float32", "float64")]
    found, single, exact = (dict(np.load(path)) for path in paths)
    found = dict(zip(exact, found.values(), strict=True))
    same = found["logits"].argmax(1) == exact["logits"].argmax(1)
    return deviations(found, single, exact), deviations(single, exact, exact), same.mean()


def deviations(found: Mapping, expected: Mapping, exact: Mapping) -> Numbers:
    """Of each output the largest difference, in standard deviations of what is exact."""
    return {
        name: float(np.abs(found[name] - expected[name]).max() / exact[name].std())
        for name in exact
    }


def worst(deviations: Numbers) -> tuple[float, float]:
    """The largest of the maps, and of the logits."""
    logits = [value for name, value in deviations.items() if name in ("logits", "auxiliary")]
    maps = [value for name, value in deviations.items() if name not in ("logits", "auxiliary")]
    return float(np.max(maps)), float(np.max(logits))


def verdict(deviations: Numbers, floors: Numbers) -> str:
    """Whether deviations are within the limits of the tests, or of rounding."""
    maps, logits = worst(deviations)
    if maps < MAP_LIMIT and logits < LOGITS_LIMIT:
        return "as tested"
    rounding = all(deviations[name] <= TOLERATED * floors[name] for name in floors)
    return "rounding" if rounding else MORE


if __name__ == "__main__":
    run_cli(main)
