"""Converting SVT-L, beside what cannot be avoided: reading the source and writing its bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from mindtwins.checkpoint import save_checkpoint
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.reference import create_reference

CONVERT, COPY = "MindTwins, .pth to .ckpt", "torch.load, write bytes, fsync"


def conversion(folder: str | os.PathLike | None = None) -> dict[str, Callable[[], None]]:
    """Both contestants, on files in a temporary folder (or in `folder`)."""
    keep = tempfile.TemporaryDirectory(dir=folder)
    source, target = Path(keep.name, "source.pth"), Path(keep.name, "target.ckpt")
    torch.save(create_reference("svt_large").state_dict(), source)

    def convert() -> None:
        assert keep  # the folder lives as long as the contestants
        converted = from_torch(read_source(source))
        save_checkpoint(target, converted.tensors, converted.metadata)

    def copy() -> None:
        tensors = torch.load(source, weights_only=True)
        with open(target, "wb") as file:
            for tensor in tensors.values():
                file.write(tensor.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    return {CONVERT: convert, COPY: copy}
