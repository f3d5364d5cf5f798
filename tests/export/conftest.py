"""Checkpoints of random weights, and what exports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mindtwins.checkpoint import save_checkpoint
from mindtwins.commands import export
from mindtwins.conversion.converter import from_torch
from mindtwins.conversion.readers import read_source
from mindtwins.export.onnx_file import to_bytes
from mindtwins.export.to_onnx import build_onnx
from mindtwins.reference import create_reference
from mindtwins.reference.weights import amplify, randomize
from mindtwins.tasks import KINDS


@pytest.fixture(scope="session")
def save_classifier() -> Callable[..., torch.nn.Module]:
    """Saves a classifier of random weights as a checkpoint and returns the reference with them."""

    def save(
        path: Path, name: str = "svt_tiny", amplified: bool = False, channels: int = 3, **dialect
    ) -> torch.nn.Module:
        reference = create_reference(name, num_classes=10, in_channels=channels, **dialect)
        randomize(reference)
        if amplified:
            amplify(reference)
        torch.save(reference.state_dict(), path.with_suffix(".pth"))
        conversion = from_torch(read_source(path.with_suffix(".pth")), KINDS)
        conversion.metadata["dialect"] |= dialect
        save_checkpoint(path, conversion.tensors, conversion.metadata)
        return reference

    return save


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, save_classifier) -> tuple[Path, torch.nn.Module]:
    """A checkpoint of svt_tiny with ten classes, and the reference with its weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    return path, save_classifier(path)


@pytest.fixture(scope="session")
def write() -> Callable[..., None]:
    """Writes the ONNX file of a checkpoint without the comparison, which takes much longer."""

    def write(checkpoint: Path, target: Path, **how) -> None:
        order = export.create_order(checkpoint, **how)
        target.write_bytes(to_bytes(*build_onnx(order, order.create().dialect)))

    return write


@pytest.fixture(scope="session")
def run_export() -> Callable[..., None]:
    """export.py with these flags."""
    return lambda *words: export.main([str(word) for word in words])


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory, tiny, write) -> Path:
    """Its ONNX file. Tests must not change it."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    write(tiny[0], path)
    return path
