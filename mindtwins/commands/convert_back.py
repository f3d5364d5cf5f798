"""Convert a checkpoint of this project back to PyTorch, bit for bit.

Example: mindtwins convert-back --ckpt_path svt_small.ckpt --pt_path svt_small.pth
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from mindtwins.checkpoint import Checkpoint, load_checkpoint
from mindtwins.cli import Parser
from mindtwins.conversion import torch_files
from mindtwins.conversion.converter import choose_layout, to_torch
from mindtwins.conversion.kinds import writable_projects
from mindtwins.conversion.layouts import Layout
from mindtwins.files import check_outputs, replaced_file
from mindtwins.tasks import KINDS
from mindtwins.tensor_files import write_safetensors


def main(argv: list[str]) -> None:
    args = _parse(argv)
    check_outputs({"--pt_path": args.pt_path}, [args.ckpt_path])
    checkpoint = load_checkpoint(args.ckpt_path)
    layout = choose_layout(checkpoint, KINDS, args.layout)
    export = to_torch(checkpoint, KINDS, layout)
    with replaced_file(args.pt_path) as temporary:
        if args.pt_path.suffix == ".safetensors":
            write_safetensors(temporary, export.tensors, {"format": "pt"})
        else:
            with temporary.open("wb") as file:
                torch_files.save(file, export.content)
    print(f"wrote {args.pt_path}: {len(export.tensors)} tensors in the {layout.project} layout")
    for reason in dict.fromkeys(export.left_out.values()):
        names = [name for name, why in export.left_out.items() if why == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"left out, {reason}: {names[0]}{more}")
    for line in (*export.notes, *_differences(checkpoint, layout)):
        print(line)


def _differences(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    """In what the code that the file is for computes otherwise than the weights are used here."""
    used = checkpoint.stated.get("dialect", {})
    if not KINDS[layout.task].keeps_dialect:
        return []
    return [
        f"note: the {layout.project} code has {field} {there}, here it is {used[field]}"
        for field, there in asdict(layout.dialect).items()
        if used.get(field, there) != there
    ]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        description="Convert a MindSpore checkpoint of a Twins classifier or segmentor to a PyTorch"
        " state dict. The values are the same bits.",
    )
    parser.add_argument(
        "--ckpt_path", type=Path, required=True, help="source: .ckpt or .safetensors"
    )
    parser.add_argument(
        "--pt_path",
        type=Path,
        required=True,
        help="target: .safetensors by its suffix, otherwise a file of torch.save",
    )
    parser.add_argument(
        "--layout",
        choices=sorted(writable_projects(KINDS)),
        help="whose names the target has (timm kept the official ones), and what else that project"
        " looks for in its files; default: whose names the weights came with, else official for a"
        " classifier and mmsegmentation for a segmentor",
    )
    return parser.parse(argv)
