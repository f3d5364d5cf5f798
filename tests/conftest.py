"""Settings for all tests."""

import os

# Before torch is loaded: its idle threads would otherwise spin on the cores that MindSpore needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import mindspore as ms
import pytest


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts in graph mode and with the same seed, whatever the one before it did."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
