import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.segmentation.complexity import count, format_summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "rounding"),
    [
        ("fpn_svt_tiny", 101, "ceil"),
        ("upernet_svt_tiny", 101, "floor"),
        ("fpn_pcpvt_small", 128, "ceil"),
        ("upernet_svt_small", 128, "ceil"),
    ],
)
def test_torch_counts_the_same(name, size, rounding):
    reference = create_segmentation_reference(name, patch_rounding=rounding, official_names=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference.stages(torch.zeros(1, 3, size, size))
    parts = count(name, size, patch_rounding=rounding)
    products = sum(part.layer_products + part.attention_products for part in parts)
    assert 2 * products == counter.get_total_flops()


def test_summary():
    lines = format_summary("upernet_svt_small").splitlines()
    assert lines[0] == "upernet_svt_small, one 512 x 512 image"
    assert "auxiliary head" in lines[-3] and "150 x 32 x 32" in lines[-3]
    assert "53,856,300" in lines[-2]
