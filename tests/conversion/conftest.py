from pathlib import Path

import pytest
import torch

from mindtwins.commands import convert, convert_back
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_state():
    """A PyTorch state dict of svt_tiny with 10 classes; not to be changed."""
    return randomize(create_reference("svt_tiny", num_classes=10), seed=1).state_dict()


@pytest.fixture
def save(tmp_path):
    """Saves an object with torch.save and returns the path."""

    def save(content, name="source.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.fixture(scope="session")
def pt2ms():
    return lambda *args: convert.main([str(arg) for arg in args])


@pytest.fixture(scope="session")
def ms2pt():
    return lambda *args: convert_back.main([str(arg) for arg in args])
