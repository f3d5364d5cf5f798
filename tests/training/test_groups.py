"""Parameter groups: which parameter is trained how."""

from __future__ import annotations

import pytest

from mindtwins.models import create_model
from mindtwins.segmentation.variants import create_segmentor
from mindtwins.training.groups import parameter_groups


@pytest.fixture(scope="module")
def model():
    return create_model("svt_tiny", num_classes=10)


def test_no_decay_on_biases_norms_and_position_encodings(model):
    decays = {g.parameter.name: g.weight_decay for g in parameter_groups(model, 0.05)}
    assert decays["blocks.0.0.attn.qkv.weight"] == 0.05
    assert decays["patch_embeds.0.proj.weight"] == decays["head.weight"] == 0.05
    assert decays["blocks.1.1.attn.sr.weight"] == 0.05
    for name in (
        "blocks.0.0.attn.qkv.bias",
        "blocks.0.0.norm1.gamma",
        "norm.beta",
        "pos_block.0.proj.0.weight",
        "pos_block.0.proj.0.bias",
    ):
        assert decays[name] == 0


def test_layer_decay_counts_blocks_from_the_head(model):
    factors = {
        g.parameter.name: g.lr_factor for g in parameter_groups(model, 0.05, layer_decay=0.5)
    }
    # svt_tiny has 1, 2, 2 and 1 blocks: depths 1; 2, 3; 4, 5; 6, the head 7. (timm's
    # `param_groups_layer_decay` gives these factors.)
    assert factors["head.weight"] == 1
    assert factors["blocks.3.0.mlp.fc1.weight"] == factors["norm.gamma"] == 0.5
    assert factors["blocks.3.0.mlp.fc1.weight"] == factors["patch_embeds.3.proj.weight"] == 0.5
    assert factors["blocks.2.1.norm1.gamma"] == 0.5**2
    assert factors["pos_block.2.proj.0.bias"] == factors["blocks.2.0.norm1.gamma"] == 0.5**3
    assert factors["blocks.0.0.norm1.gamma"] == 0.5**6
    assert factors["patch_embeds.0.norm.gamma"] == 0.5**7


def test_frozen_backbone(model):
    groups = parameter_groups(model, 0.05, freeze_backbone=True)
    assert [g.parameter.name for g in groups] == ["head.weight", "head.bias"]


def test_exemptions_by_name(model):
    def exempt(*kinds: str) -> set[str]:
        groups = parameter_groups(model, 0.05, kinds)
        return {g.parameter.name for g in groups if g.weight_decay == 0}

    assert exempt() == set()
    norms = exempt("norm")
    assert "blocks.0.0.norm1.gamma" in norms and "norm.beta" in norms
    assert "blocks.0.0.attn.qkv.bias" not in norms
    positions = {f"pos_block.{i}.proj.0.{p}" for i in range(4) for p in ("weight", "bias")}
    assert exempt("pos_block") == positions
    assert exempt("norm", "pos_block") == norms | positions


def test_batch_norms_of_segmentation_heads_are_decayed():
    """The published recipes exempt what has "norm" in its name; theirs are called bn."""
    segmentor = create_segmentor("upernet_svt_tiny", num_classes=7)
    groups = parameter_groups(segmentor, 0.01, ("norm", "pos_block"))
    decayed = {g.parameter.name for g in groups if g.weight_decay == 0.01}
    assert "decode_head.fpn_bottleneck.bn.gamma" in decayed
    assert "auxiliary_head.convs.0.bn.beta" in decayed
    assert "backbone.norm_list.3.gamma" not in decayed
