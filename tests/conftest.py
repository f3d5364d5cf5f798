"""Settings for all tests."""

import os

# Before torch is loaded: its idle threads would otherwise spin on the cores that MindSpore needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import mindspore as ms
import pytest


@pytest.fixture(autouse=True)
def graph_mode():
    """Every test starts in graph mode, whatever the one before it set."""
    ms.set_context(mode=ms.GRAPH_MODE)
