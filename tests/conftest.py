"""Settings for all tests."""

import mindspore as ms
import pytest
import torch

# Two cores: torch and MindSpore would otherwise each start a thread per core and wait on them.
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def graph_mode():
    """Every test starts in graph mode, whatever the one before it set."""
    ms.set_context(mode=ms.GRAPH_MODE)
