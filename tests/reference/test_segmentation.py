"""The segmentation reference: its sizes, and its two sets of names against one another."""

import pytest
import torch

from mindtwins.reference import create_reference
from mindtwins.reference.segmentation import (
    create_backbone_reference,
    create_segmentation_reference,
)
from mindtwins.reference.weights import randomize

PARAMETERS = {
    "fpn_pcpvt_small": 27_858_838,
    "fpn_pcpvt_base": 47_581_078,
    "fpn_pcpvt_large": 64_742_294,
    "fpn_svt_small": 27_798_934,
    "fpn_svt_base": 59_676_438,
    "fpn_svt_large": 102_744_214,
    "upernet_pcpvt_small": 54_080_044,
    "upernet_pcpvt_base": 73_802_284,
    "upernet_pcpvt_large": 90_963_500,
    "upernet_svt_small": 53_856_300,
    "upernet_svt_base": 87_724_460,
    "upernet_svt_large": 132_782_892,
}


@pytest.mark.slow
@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name, official):
    with torch.device("meta"):
        reference = create_segmentation_reference(name, official_names=official)
    assert sum(p.numel() for p in reference.parameters()) == PARAMETERS[name]


def to_mmsegmentation(official):
    """By the rules of MMSegmentation's own key converter."""
    state = {}
    for name, tensor in official.items():
        new = name.replace("blocks.", "layers.").replace("mlp.fc1", "ffn.layers.0.0")
        new = new.replace("mlp.fc2", "ffn.layers.1").replace("pos_block", "position_encodings")
        if "pos_block" in name:
            new = new.replace("proj.0", "proj")
        if "patch_embeds" in name:
            new = new.replace("proj", "projection")
        if ".attn.q." in name:
            tensor = torch.cat([tensor, official[name.replace(".q.", ".kv.")]])
            new = new.replace("attn.q.", "attn.attn.in_proj_")
        if ".attn.proj." in name and name.replace("proj", "q") in official:
            new = new.replace("attn.proj", "attn.attn.out_proj")
        if ".attn.kv." not in name and not name.startswith("head."):
            state[new] = tensor
    return state


@pytest.mark.parametrize(
    "name", ["fpn_svt_tiny", pytest.param("upernet_pcpvt_small", marks=pytest.mark.slow)]
)
def test_both_sets_of_names_compute_the_same(name):
    official = randomize(create_segmentation_reference(name, 5, official_names=True))
    other = create_segmentation_reference(name, 5)
    other.load_state_dict(to_mmsegmentation(official.state_dict()))
    images = torch.randn(1, 3, 99, 163, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(
            official.stages(images).values(), other.stages(images).values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svt_tiny", "pcpvt_small"])
def test_the_key_converters_backbone_computes_the_same(name):
    official = randomize(create_reference(name, num_classes=0))
    other = create_backbone_reference(name)
    other.load_state_dict(to_mmsegmentation(official.state_dict()))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = official.stages(images)["logits"]
        torch.testing.assert_close(other.stages(images)["logits"], expected, atol=5e-6, rtol=0)


def test_randomized_statistics_are_nowhere_trivial():
    for name, buffer in randomize(
        create_segmentation_reference("upernet_svt_tiny")
    ).named_buffers():
        if "running" in name:
            assert buffer.std() > 0.1, name
