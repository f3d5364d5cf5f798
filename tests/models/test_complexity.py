"""Counts of parameters and multiply-adds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mindtwins.models.complexity import count, format_summary
from mindtwins.reference import create_reference

# The paper, tables 3 and 4 (224 x 224), in 1e9 multiply-adds.
PUBLISHED = {
    "pcpvt_small": 3.7,
    "pcpvt_base": 6.4,
    "pcpvt_large": 9.5,
    "svt_small": 2.8,
    "svt_base": 8.3,
    "svt_large": 14.8,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    assert round(sum(part.layer_products for part in count(name)) / 1e9, 1) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("svt_small", 224), ("pcpvt_small", 224), ("svt_tiny", 101)]
)
def test_torch_counts_the_same(name, size):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        create_reference(name)(torch.zeros(1, 3, size, size))
    parts = count(name, size)
    products = sum(part.layer_products + part.attention_products for part in parts)
    assert 2 * products == counter.get_total_flops()


def test_summary():
    lines = format_summary("svt_small").splitlines()
    assert "24,060,776" in lines[-2]
    assert lines[-1].startswith("24.1 M parameters; 2.8 GFLOPs")
