"""Convert a checkpoint of this project back to PyTorch, bit for bit.

Example: python convert/ms2pt.py --ckpt_path svt_small.ckpt --pt_path svt_small.pth
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtwins.checkpoint import load_checkpoint
from mindtwins.conversion import torch_files
from mindtwins.conversion.converter import to_torch
from mindtwins.conversion.layouts import LAYOUTS
from mindtwins.errors import UserError, run_cli
from mindtwins.files import check_writable, replaced_file
from mindtwins.tensor_files import write_safetensors


def main(argv: list[str]) -> None:
    args = _parse(argv)
    check_writable(args.pt_path)
    if args.pt_path.resolve() == args.ckpt_path.resolve():
        raise UserError(f"{args.ckpt_path} is both source and target: choose another --pt_path")
    tensors = to_torch(load_checkpoint(args.ckpt_path), args.layout)
    with replaced_file(args.pt_path) as temporary:
        if args.pt_path.suffix == ".safetensors":
            write_safetensors(temporary, tensors, {"format": "pt"})
        else:
            with temporary.open("wb") as file:
                torch_files.save(file, tensors)
    print(f"wrote {args.pt_path}: {len(tensors)} tensors in the {args.layout} layout")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ms2pt.py",
        description="Convert a MindSpore checkpoint of a Twins classification model to a PyTorch"
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
        choices=sorted(LAYOUTS),
        default="official",
        help="whose names the target has (timm kept the official ones); default: official",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_cli(main)
