import pytest
import torch

from mindtwins.conversion.layouts import LAYOUTS
from mindtwins.models.variants import VARIANTS, parameter_shapes
from mindtwins.reference import create_reference


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("variant", ["svt_tiny", "pcpvt_small"])
def test_names_every_parameter_both_ways(layout, variant):
    with torch.device("meta"):
        theirs = list(create_reference(variant).state_dict())
    ours = [layout.to_ours(name) for name in theirs]
    assert set(ours) == set(parameter_shapes(variant))
    assert [layout.to_theirs(name) for name in ours] == theirs


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("patch_embeds.3.proj.weight", "patch_embeds.3.proj.weight"),
        ("patch_embeds.0.norm.weight", "patch_embeds.0.norm.gamma"),
        ("blocks.2.17.attn.norm.bias", "blocks.2.17.attn.norm.beta"),
        ("blocks.0.0.attn.qkv.bias", "blocks.0.0.attn.qkv.bias"),
        ("pos_block.1.proj.0.weight", "pos_block.1.proj.0.weight"),
        ("norm.weight", "norm.gamma"),
        ("head.bias", "head.bias"),
    ],
)
def test_examples(theirs, ours):
    assert LAYOUTS["official"].to_ours(theirs) == ours
    assert LAYOUTS["official"].to_theirs(ours) == theirs


@pytest.mark.parametrize(
    "name",
    ["norm.gamma", "head.weight.extra", "xhead.weight", "blocks.a.0.norm1.weight", "headXweight"],
)
def test_has_no_name_for_others(name):
    assert LAYOUTS["official"].to_ours(name) is None


def test_knows_what_has_no_place():
    layout = LAYOUTS["timm"]
    assert "counter" in layout.reason_to_ignore("bn.num_batches_tracked")
    assert layout.reason_to_ignore("bn.running_mean") is None


def test_every_variant_is_covered():
    layout = LAYOUTS["official"]
    for variant in VARIANTS:
        assert all(layout.to_theirs(name) for name in parameter_shapes(variant))
