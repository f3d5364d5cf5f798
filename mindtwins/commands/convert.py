"""Convert a PyTorch checkpoint of a Twins model to MindSpore.

Example: mindtwins convert --pt_path alt_gvt_small.pth --ckpt_path svt_small.ckpt --verify
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mindtwins.checkpoint import check_suffix, write_checkpoint
from mindtwins.cli import Parser
from mindtwins.conversion.converter import Conversion, from_torch
from mindtwins.conversion.readers import Source, read_source
from mindtwins.errors import UserError
from mindtwins.execution import use_device
from mindtwins.files import atomic_write, check_outputs, replaced_file
from mindtwins.tasks import KINDS
from mindtwins.tensor_files import FormatError

if TYPE_CHECKING:
    from mindtwins.conversion.verify import Comparison


def main(argv: list[str]) -> None:
    args = _parse(argv)
    _check_paths(args)
    verify = _import_verify() if args.verify else None
    use_device("CPU")  # whatever else there is: the limits are those of its float32
    source = read_source(args.pt_path)
    _check_outputs(args, source.shards)
    conversion = from_torch(
        source,
        KINDS,
        args.model,
        args.num_classes,
        args.drop_head,
        args.state_dict,
        args.prefix,
    )
    print(_summary(source, conversion))

    comparisons = []
    # Beside its place until it is proven, so that a failure leaves what was there before.
    with replaced_file(args.ckpt_path) as written:
        _write(args.ckpt_path, written, conversion)
        if verify is not None:
            comparisons = verify.verify(written, source, KINDS, conversion, print)
            print(verify.format_table(comparisons))
        failed = [row for row in comparisons if not row.passed]
        if args.report is not None:
            _write_report(args.report, conversion, comparisons)
        if failed:
            raise UserError(
                f"{args.ckpt_path} was not written: the converted model differs from"
                f" {args.pt_path} by more than rounding in {len(failed)} of {len(comparisons)} rows"
            )
    print(f"wrote {args.ckpt_path} ({args.ckpt_path.stat().st_size / 1e6:.1f} MB)")


def _write(ckpt_path: Path, written: Path, conversion: Conversion) -> None:
    try:
        write_checkpoint(written, conversion.tensors, conversion.metadata)
    except FormatError as error:
        raise UserError(f"cannot write {ckpt_path}: {error}") from error


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        description="Convert a PyTorch checkpoint of a Twins model to MindSpore: classifiers with"
        " official, timm's or MMPretrain's names, segmentors of MMSegmentation, sssegmentation and"
        " the official code, detectors of the official code and MMDetection, backbones of"
        " MMSegmentation's key converter. Which it is, is"
        " recognized, also below a wrapper's prefix. Every tensor is accounted for; code in the"
        " file never runs.",
    )
    parser.add_argument(
        "--pt_path",
        type=Path,
        required=True,
        help="source: a file of torch.save (.pth, .pt, .bin, .ckpt, in the zip or the legacy"
        " format), .safetensors, or the .index.json of shards, by its content",
    )
    parser.add_argument(
        "--ckpt_path", type=Path, required=True, help="target: .ckpt or .safetensors"
    )
    parser.add_argument(
        "--state_dict",
        "--key",
        metavar="KEY",
        help="the key of the state dict in the source, such as model, model_ema, state_dict_ema or"
        " ema_ (mmcv's average among the weights); default: the one of a Twins model, weights"
        " before their moving average",
    )
    parser.add_argument(
        "--prefix",
        help="what the names of the source's tensors begin with, such as student. or backbone.;"
        " default: the one under which they fit",
    )
    parser.add_argument(
        "--model", help="the variant that the source has to be; default: recognized from shapes"
    )
    parser.add_argument(
        "--num_classes", type=int, help="classes of the target, 0 for no head; default: as source"
    )
    parser.add_argument(
        "--drop_head",
        action="store_true",
        help="leave the source's classifier out; the target's, --num_classes wide, is all zeros",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the written file in MindSpore and the source in PyTorch on two photographs and"
        " compare every stage; the target is written only if they agree up to rounding",
    )
    parser.add_argument(
        "--report", type=Path, help="write the account of all tensors to this JSON file"
    )
    return parser.parse(argv)


def _check_paths(args: argparse.Namespace) -> None:
    """Find out before the work whether its result has a place."""
    check_suffix(args.ckpt_path)
    _check_outputs(args)


def _check_outputs(args: argparse.Namespace, shards: Sequence[Path] = ()) -> None:
    outputs = {"--ckpt_path": args.ckpt_path, "--report": args.report}
    check_outputs(outputs, [args.pt_path, *shards])


def _import_verify() -> ModuleType:
    """The verification; it needs packages that conversion does not."""
    try:
        from mindtwins.conversion import verify
    except ImportError as error:
        raise UserError(
            f"--verify needs {error.name}, which is not installed:"
            " pip install torch scikit-learn pillow"
        ) from error
    return verify


def _summary(source: Source, conversion: Conversion) -> str:
    """What was read, recognized, used, ignored, widened and filled, a line each."""
    account, metadata, selection = conversion.account, conversion.metadata, conversion.selection
    container = f" under {selection.container!r}" if selection.container else ""
    prefix = f", each name without {selection.prefix!r}" if selection.prefix else ""
    count = sum(
        array.size for name, array in conversion.tensors.items() if ".bn.moving_" not in name
    )
    lines = [
        f"read {source.path}: {len(selection.names)} tensors{container}{prefix}",
        f"recognized {metadata['variant']}, {metadata['num_classes']} classes:"
        f" {count:,} parameters, {len(account.used)} tensors used",
        f"names of the {metadata['source']['layout']} code; the model computes with"
        f" {', '.join(f'{field} {value}' for field, value in metadata['dialect'].items())}",
        *conversion.notes,
    ]
    lines += _by_value("widened to float32, values unchanged, from", account.widened)
    lines += _by_value("ignored,", account.ignored)
    lines += _by_value("filled with", account.filled)
    return "\n".join(lines)


def _by_value(what: str, table: dict[str, str]) -> list[str]:
    """A line for each distinct value: how many names have it and the first of them."""
    lines = []
    for value in sorted(set(table.values())):
        names = [name for name, own in table.items() if own == value]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{what} {value}: {names[0]}{more}")
    return lines


def _write_report(path: Path, conversion: Conversion, comparisons: list[Comparison]) -> None:
    selection = conversion.selection
    report = {
        "source": {"container": selection.container, "prefix": selection.prefix},
        "metadata": conversion.metadata,
        "notes": list(conversion.notes),
        "account": asdict(conversion.account),
        "verification": [asdict(row) | {"passed": row.passed} for row in comparisons],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
