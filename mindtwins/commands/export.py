"""Export a checkpoint to a file that other programs run, compared with the model it came from.

    python export.py --ckpt_path svt_small.ckpt --file_name svt_small.onnx

The file is loaded again and computes photographs of several sizes beside the live model; where they
differ by more than rounding, nothing is left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindtwins.checkpoint import load_checkpoint
from mindtwins.cli import Parser
from mindtwins.config import InferConfig
from mindtwins.conversion.kinds import identified
from mindtwins.errors import UserError
from mindtwins.execution import use_device
from mindtwins.export.check import Comparison, format_table
from mindtwins.export.order import Order
from mindtwins.files import atomic_write, check_outputs, replaced_file
from mindtwins.models.twins import MINIMUM_SIZE
from mindtwins.tasks import EXPORTS, KINDS, TASKS

Export = Callable[[Order, Path], list[Comparison]]


def main(argv: list[str]) -> None:
    args = _parse(argv)
    check_outputs({"--file_name": args.file_name, "--report": args.report}, [args.ckpt_path])
    export = _exporter(args.file_name)
    use_device("CPU")  # whatever else there is: the limit is that of its float32
    order = create_order(
        args.ckpt_path,
        features_only=args.features_only,
        image_size=args.image_size,
        batch_size=args.batch_size,
        device_target=args.device_target,
    )
    # Beside its place until it is proven, so that a failure leaves what was there before.
    with replaced_file(args.file_name) as written:
        rows = export(order, written)
        print(format_table(rows))
        if args.report is not None:
            _write_report(args.report, rows)
        failed = [row for row in rows if not row.passed]
        if failed:
            raise UserError(
                f"{args.file_name} was not written: it differs from the live model by more than"
                f" rounding ({order.kind.tolerated:g} of the standard deviation) in {len(failed)} of"
                f" {len(rows)} rows"
            )
    print(f"wrote {args.file_name} ({args.file_name.stat().st_size / 1e6:.1f} MB)")


def _exporter(path: Path) -> Export:
    """What writes files of a name's suffix; its packages are imported here."""
    if path.suffix == ".onnx":
        return _import_onnx()
    if path.suffix == ".mindir":
        from mindtwins.export.to_mindir import export_mindir

        return export_mindir
    raise UserError(f"{path}: the name of an export has to end in .onnx or .mindir")


def _import_onnx() -> Export:
    try:
        from mindtwins.export.to_onnx import export_onnx
    except ImportError as error:
        raise UserError(
            f"ONNX files are written with {error.name}, which is not installed:"
            ' pip install "onnx>=1.17,<2" "onnxruntime>=1.20" "numpy<2" scikit-learn'
        ) from error
    return export_onnx


def create_order(path: Path, **how: Any) -> Order:
    """The export of what a checkpoint holds; `how` are further attributes of the order.

    Raises:
        UserError: the checkpoint cannot be read, or its model cannot be exported.
    """
    checkpoint = identified(KINDS, load_checkpoint(path))
    task = checkpoint.stated["task"]
    described = TASKS[task](InferConfig(task=task, ckpt_path=str(path)), checkpoint)
    keys = KINDS[task].architecture_keys
    architecture = {key: checkpoint.stated[key] for key in keys if key in checkpoint.stated}
    return Order(checkpoint, EXPORTS[task], architecture, described.use(), **how)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ckpt_path", type=Path, required=True, help="source: .ckpt or .safetensors"
    )
    parser.add_argument("--file_name", type=Path, required=True, help="target: .onnx or .mindir")
    parser.add_argument(
        "--features_only",
        action="store_true",
        help="a classifier's backbone alone: four maps of strides 4, 8, 16 and 32",
    )
    parser.add_argument(
        "--image_size",
        type=_at_least(MINIMUM_SIZE),
        help="take images of this height and width only; default: any, in one file",
    )
    parser.add_argument(
        "--batch_size",
        type=_at_least(1),
        help="take batches of this many images only; default: any",
    )
    parser.add_argument(
        "--device_target",
        choices=("CPU", "GPU", "Ascend"),
        default="CPU",
        help="MindIR: the device that the file is for; it is exported and compared on this CPU",
    )
    parser.add_argument("--report", type=Path, help="write the comparison to this JSON file")
    return parser.parse(argv)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number


def _write_report(path: Path, rows: list[Comparison]) -> None:
    report = [asdict(row) | {"passed": row.passed} for row in rows]
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
