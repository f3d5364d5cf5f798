"""The parity table: every model converted from a PyTorch file and compared with it.

    python benchmarks/parity.py [--models svt_small upernet_svt_small ...]

Weights are random (none trivially 0 or 1) and, in every second row, amplified to bring mistakes in
the norms out; images are two photographs. Deviations are in standard deviations of the reference's
output, and beside them stands PyTorch's own rounding: float32 against float64 of the same model.
Of a segmentor the maps are the backbone's and the neck's, the logits also the auxiliary head's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from mindtwins import list_models, list_segmentors
from mindtwins.checkpoint import save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.conversion.verify import Comparison, verify
from mindtwins.errors import UserError, run_cli
from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.reference.weights import randomize

HEAD = "| model | weights | worst map | PyTorch alone | logits | PyTorch alone |"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [*list_models(), *list_segmentors()]
    parser.add_argument("--models", nargs="+", default=models, choices=models, metavar="MODEL")
    names = parser.parse_args(argv).models
    print(f"{HEAD}\n|{'---|' * 6}", flush=True)
    failed = []
    for name in names:
        comparisons = convert_and_verify(name)
        for weights in ("as converted", "amplified"):
            rows = [row for row in comparisons if row.weights == weights]
            print(f"| {name} | {weights} | {describe(rows)} |", flush=True)
        failed += [f"{name} {row.stage}" for row in comparisons if not row.passed]
    if failed:
        raise UserError(f"more than rounding apart: {', '.join(failed)}")


def convert_and_verify(name: str) -> list[Comparison]:
    """The way of a user's file: saved by torch, read, converted, written, loaded, compared."""
    with tempfile.TemporaryDirectory() as folder:
        pt_path, ckpt_path = Path(folder, "source.pth"), Path(folder, "converted.ckpt")
        is_segmentor = name in list_segmentors()
        create = create_segmentation_reference if is_segmentor else create_reference
        torch.save({"model": randomize(create(name)).state_dict()}, pt_path)
        source = read_source(pt_path)
        conversion = from_torch(source)
        save_checkpoint(ckpt_path, conversion.tensors, conversion.metadata)
        return verify(ckpt_path, source, conversion.account.used)


def describe(rows: list[Comparison]) -> str:
    numbers = []
    for of_map in (True, False):
        kind = [row for row in rows if row.stage.startswith(("stage", "neck")) == of_map]
        worst = max(kind, key=lambda row: row.max_abs)
        numbers += [worst.max_abs, worst.max_abs_floor]
    return " | ".join(f"{number:.1e}" for number in numbers)


if __name__ == "__main__":
    run_cli(main)
