"""Export a checkpoint to a file that other programs run, compared with the model it came from.

    mindtwins export --ckpt_path svt_small.ckpt --file_name svt_small.onnx
    mindtwins export --pretrained --model svt_small --file_name svt_small.onnx

The file is loaded again and computes photographs of several sizes beside the live model; where they
differ by more than rounding, nothing is left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mindtwins.checkpoint import Checkpoint, expect_metadata, load_checkpoint
from mindtwins.cli import Parser
from mindtwins.config import PUBLISHED_WEIGHTS, InferConfig
from mindtwins.conversion.kinds import identified
from mindtwins.errors import UserError
from mindtwins.execution import use_device
from mindtwins.export.check import Comparison, format_table
from mindtwins.export.order import Order
from mindtwins.files import atomic_write, check_outputs, replaced_file
from mindtwins.models.twins import MINIMUM_SIZE
from mindtwins.tasks import EXPORTS, KINDS, TASKS, find_checkpoint, of_task

Export = Callable[[Order, Path], list[Comparison]]


def main(argv: list[str]) -> None:
    args = _parse(argv)
    config = _source(args)
    check_outputs({"--file_name": args.file_name, "--report": args.report}, [config.weights])
    export = _exporter(args.file_name)
    _check_together(args)
    use_device("CPU")  # whatever else there is: the limit is that of its float32
    checkpoint = find_checkpoint(config)
    if args.model:
        kind = KINDS[checkpoint.stated["task"]]
        expect_metadata(checkpoint, variant=kind.resolve(args.model))
    order = create_order(
        checkpoint,
        features_only=args.features_only,
        image_size=args.image_size,
        batch_size=args.batch_size,
        preprocess=args.preprocess,
        precision=args.precision,
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
                f" rounding in {len(failed)} of {len(rows)} rows"
            )
    exact = "" if args.precision == "float32" else f", {args.precision}: not exact"
    print(f"wrote {args.file_name} ({args.file_name.stat().st_size / 1e6:.1f} MB){exact}")


def _check_together(args: argparse.Namespace) -> None:
    """Raise a UserError for flags that do not go together."""
    is_onnx = args.file_name.suffix == ".onnx"
    if args.precision != "float32" and not is_onnx:
        raise UserError(f"--precision {args.precision} is for .onnx, not for {args.file_name}")
    if args.device_target != "CPU" and is_onnx:
        raise UserError("--device_target is for .mindir: an ONNX file is the same for all devices")
    if not args.preprocess:
        return
    if not is_onnx:
        raise UserError(f"--preprocess is for .onnx, not for {args.file_name}")
    if args.batch_size or args.precision != "float32":
        raise UserError(
            "--preprocess takes one picture at a time, in float32: leave --batch_size and"
            " --precision out"
        )


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


def _source(args: argparse.Namespace) -> InferConfig:
    """What the flags name, as a recipe would."""
    if not (args.ckpt_path or args.pretrained):
        raise UserError(
            "ckpt_path is missing: say which checkpoint with --ckpt_path, or --pretrained and"
            " --model for published weights"
        )
    if args.pretrained == PUBLISHED_WEIGHTS and not args.model:
        raise UserError("--pretrained needs --model: say which model's published weights")
    named = {"model": args.model} if args.model else {}
    return InferConfig(ckpt_path=str(args.ckpt_path or ""), pretrained=args.pretrained, **named)


def create_order(source: Path | Checkpoint, image_size: int | None = None, **how: Any) -> Order:
    """The export of what a checkpoint holds.

    Args:
        source: the checkpoint, or where it is.
        image_size: side of the only images to take, which its preprocessing then gives; None for
            any.
        how: further attributes of the order.

    Raises:
        UserError: the checkpoint cannot be read, or its model cannot be exported.
    """
    if not isinstance(source, Checkpoint):
        source = load_checkpoint(source)
    checkpoint = identified(KINDS, source)
    task = checkpoint.stated["task"]
    export = of_task(EXPORTS, task, "exported")
    config = InferConfig(task=task, ckpt_path=str(checkpoint.path))
    if image_size is not None:
        stated = {"image_size": "--image_size"}
        config = replace(config, image_size=image_size, stated=stated)
    described = TASKS[task](config, checkpoint)
    keys = KINDS[task].architecture_keys
    return Order(
        checkpoint,
        export,
        {key: checkpoint.stated[key] for key in keys if key in checkpoint.stated},
        described.use(),
        described.preprocessing(),
        image_size=image_size,
        **how,
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=_at_home, help="source: .ckpt or .safetensors")
    parser.add_argument(
        "--pretrained",
        nargs="?",
        const=PUBLISHED_WEIGHTS,
        default="",
        metavar="NAME",
        help="source: a PyTorch file, a folder or a repository of the hub; without a value: the"
        " weights that the authors published for --model",
    )
    parser.add_argument(
        "--model",
        help="the model that it has to be, whose published weights --pretrained takes",
    )
    parser.add_argument(
        "--file_name", type=_at_home, required=True, help="target: .onnx or .mindir"
    )
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
        "--preprocess",
        action="store_true",
        help="ONNX of a classifier: take whole pictures, uint8 (1, height, width, 3) RGB, one at a"
        " time, and resize, crop and normalize them in the file (opset 18)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "int8", "bf16"),
        default="float32",
        help="ONNX: int8: 8-bit linear layers (onnxruntime's dynamic quantization); bf16: a float32"
        " file whose results in OpenVINO's bfloat16 are compared. Neither is exact: how far they"
        " are off is printed and stored in the file",
    )
    parser.add_argument(
        "--device_target",
        choices=("CPU", "GPU", "Ascend"),
        default="CPU",
        help="MindIR: the device that the file is for; it is exported and compared on this CPU",
    )
    parser.add_argument("--report", type=_at_home, help="write the comparison to this JSON file")
    return parser.parse(argv)


def _at_home(text: str) -> Path:
    """A path, whose ~ is the user's home also behind an equals sign."""
    return Path(text).expanduser()


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
