import re
from pathlib import Path

import pytest
import torch

from mindtwins.conversion.kinds import all_layouts, find_layout
from mindtwins.conversion.readers import Source
from mindtwins.conversion.selection import select
from mindtwins.detection.variants import detector_shapes
from mindtwins.errors import UserError
from mindtwins.models.variants import VARIANTS, parameter_shapes
from mindtwins.reference import create_reference
from mindtwins.reference.detection import create_detection_reference
from mindtwins.reference.mmpretrain import create_mmpretrain_reference
from mindtwins.reference.segmentation import (
    create_backbone_reference,
    create_segmentation_reference,
    rename_sssegmentation,
)
from mindtwins.segmentation.variants import segmentor_shapes
from mindtwins.tasks import KINDS

# Which detector is looked at beside which segmentor.
DETECTORS = {"fpn": "retinanet", "upernet": "maskrcnn"}


def state_names(layout, variant, head="upernet"):
    """The names that the layout's project has, by its reference, without counters."""
    with torch.device("meta"):
        if layout.task == "segmentation":
            official = layout.project == "official"
            model = create_segmentation_reference(f"{head}_{variant}", official_names=official)
        elif layout.task == "detection":
            model = create_detection_reference(f"{DETECTORS[head]}_{variant}")
        elif layout.project == "mmsegmentation":
            model = create_backbone_reference(variant)
        elif layout.project == "mmpretrain":
            model = create_mmpretrain_reference(variant)
        else:
            model = create_reference(variant)
    return [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]


def our_names(layout, variant, head="upernet"):
    if layout.task == "segmentation":
        return segmentor_shapes(f"{head}_{variant}")
    if layout.task == "detection":
        return detector_shapes(f"{DETECTORS[head]}_{variant}")
    return parameter_shapes(variant, 0 if layout.project == "mmsegmentation" else 1000)


def ids(layout):
    return f"{layout.project}-{layout.task}"


with_reference = [layout for layout in all_layouts(KINDS) if layout.project != "sssegmentation"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", with_reference, ids=ids)
@pytest.mark.parametrize("variant", ["svt_tiny", "pcpvt_small"])
@pytest.mark.parametrize("head", ["fpn", "upernet"])
def test_names_every_parameter_both_ways(layout, variant, head):
    theirs, ours = state_names(layout, variant, head), our_names(layout, variant, head)
    parts = [part for name in theirs for part in layout.to_ours(name)]
    assert sorted(parts) == sorted(ours)
    assert {layout.to_theirs(name, ours) for name in ours} == set(theirs)


@pytest.mark.parametrize("variant", ["svt_tiny", "pcpvt_small"])
def test_names_of_sssegmentation(variant):
    layout = find_layout(KINDS, "sssegmentation", "segmentation")
    ours = segmentor_shapes(f"upernet_{variant}")
    theirs = dict.fromkeys(layout.to_theirs(name, ours) for name in ours)
    assert sorted(part for name in theirs for part in layout.to_ours(name)) == sorted(ours)
    renamed = rename_sssegmentation(theirs)
    expected = state_names(find_layout(KINDS, "mmsegmentation", "segmentation"), variant)
    assert sorted(renamed) == sorted(expected)


@pytest.mark.parametrize("layout", all_layouts(KINDS), ids=ids)
def test_recognizes_its_names(layout):
    ours = our_names(layout, "svt_tiny")
    theirs = [layout.to_theirs(name, ours) for name in ours]
    # timm kept the official ones, and what is told by its order gets them.
    is_official = layout.project == "timm" or layout.by_order is not None
    expected = find_layout(KINDS, "official", "classification") if is_official else layout
    places = dict.fromkeys(filter(None, theirs))
    source = Source(Path("x.pth"), "", places, {"": {name: name for name in places}})
    selection = select(source, KINDS)
    assert selection.layout is expected
    assert (selection.prefix, list(selection.names)) == ("", list(places))


CLASSIFICATION = [
    ("patch_embeds.3.proj.weight", "patch_embeds.3.proj.weight"),
    ("patch_embeds.0.norm.weight", "patch_embeds.0.norm.gamma"),
    ("blocks.2.17.attn.norm.bias", "blocks.2.17.attn.norm.beta"),
    ("blocks.0.0.attn.qkv.bias", "blocks.0.0.attn.qkv.bias"),
    ("pos_block.1.proj.0.weight", "pos_block.1.proj.0.weight"),
    ("norm.weight", "norm.gamma"),
    ("head.bias", "head.bias"),
]
MMPRETRAIN = [
    ("backbone.patch_embeds.0.projection.bias", "patch_embeds.0.proj.bias"),
    ("backbone.patch_embeds.3.norm.weight", "patch_embeds.3.norm.gamma"),
    ("backbone.stages.2.17.attn.kv.weight", "blocks.2.17.attn.kv.weight"),
    ("backbone.stages.2.16.attn.qkv.bias", "blocks.2.16.attn.qkv.bias"),
    ("backbone.stages.0.1.attn.norm.bias", "blocks.0.1.attn.norm.beta"),
    ("backbone.stages.1.0.ffn.layers.0.0.weight", "blocks.1.0.mlp.fc1.weight"),
    ("backbone.stages.1.0.ffn.layers.1.bias", "blocks.1.0.mlp.fc2.bias"),
    ("backbone.position_encodings.3.proj.weight", "pos_block.3.proj.0.weight"),
    ("backbone.norm_after_stage3.weight", "norm.gamma"),
    ("head.fc.bias", "head.bias"),
]
MMSEGMENTATION = [
    ("backbone.patch_embeds.0.projection.bias", "backbone.patch_embeds.0.proj.bias"),
    ("backbone.layers.2.17.ffn.layers.0.0.weight", "backbone.blocks.2.17.mlp.fc1.weight"),
    ("backbone.layers.2.17.ffn.layers.1.weight", "backbone.blocks.2.17.mlp.fc2.weight"),
    ("backbone.layers.0.1.attn.sr.weight", "backbone.blocks.0.1.attn.sr.weight"),
    ("backbone.position_encodings.3.proj.bias", "backbone.pos_block.3.proj.0.bias"),
    ("backbone.norm_list.1.weight", "backbone.norm_list.1.gamma"),
    ("neck.fpn_convs.0.conv.bias", "neck.fpn_convs.0.conv.bias"),
    ("decode_head.scale_heads.3.4.conv.weight", "decode_head.scale_heads.3.4.conv.weight"),
    (
        "decode_head.psp_modules.2.1.bn.running_var",
        "decode_head.psp_modules.2.1.bn.moving_variance",
    ),
    ("auxiliary_head.convs.0.bn.running_mean", "auxiliary_head.convs.0.bn.moving_mean"),
    ("decode_head.conv_seg.bias", "decode_head.conv_seg.bias"),
]
DETECTION = [
    ("backbone.blocks.2.17.attn.sr.weight", "backbone.blocks.2.17.attn.sr.weight"),
    ("backbone.norm_list.1.bias", "backbone.norm_list.1.beta"),
    ("neck.fpn_convs.4.conv.weight", "neck.fpn_convs.4.conv.weight"),
    ("bbox_head.reg_convs.3.conv.bias", "bbox_head.reg_convs.3.conv.bias"),
    ("bbox_head.retina_cls.weight", "bbox_head.retina_cls.weight"),
    ("rpn_head.rpn_reg.bias", "rpn_head.rpn_reg.bias"),
    ("roi_head.bbox_head.shared_fcs.0.weight", "roi_head.bbox_head.shared_fcs.0.weight"),
    ("roi_head.mask_head.upsample.weight", "roi_head.mask_head.upsample.weight"),
]
SSSEGMENTATION = [
    ("backbone_net.layers.0.1.attn.norm.weight", "backbone.blocks.0.1.attn.norm.gamma"),
    ("ppm_net.branches.3.1.weight", "decode_head.psp_modules.3.1.conv.weight"),
    ("ppm_net.branches.3.2.bias", "decode_head.psp_modules.3.1.bn.beta"),
    ("ppm_net.bottleneck.1.running_var", "decode_head.bottleneck.bn.moving_variance"),
    ("lateral_convs.2.0.weight", "decode_head.lateral_convs.2.conv.weight"),
    ("fpn_convs.1.1.weight", "decode_head.fpn_convs.1.bn.gamma"),
    ("decoder.0.weight", "decode_head.fpn_bottleneck.conv.weight"),
    ("decoder.4.weight", "decode_head.conv_seg.weight"),
    ("auxiliary_decoder.1.running_mean", "auxiliary_head.convs.0.bn.moving_mean"),
    ("auxiliary_decoder.4.bias", "auxiliary_head.conv_seg.bias"),
]


@pytest.mark.parametrize(
    ("project", "task", "theirs", "ours"),
    [
        *(("official", "classification", *pair) for pair in CLASSIFICATION),
        *(("mmpretrain", "classification", *pair) for pair in MMPRETRAIN),
        *(("mmsegmentation", "segmentation", *pair) for pair in MMSEGMENTATION),
        *(("sssegmentation", "segmentation", *pair) for pair in SSSEGMENTATION),
        *(("official", "detection", *pair) for pair in DETECTION),
    ],
)
def test_examples(project, task, theirs, ours):
    layout = find_layout(KINDS, project, task)
    assert layout.to_ours(theirs) == (ours,)
    assert layout.to_theirs(ours, [ours]) == theirs


class TestAttentionOfMMSegmentation:
    layout = find_layout(KINDS, "mmsegmentation", "segmentation")
    block = "backbone.blocks.0.1.attn"
    their_block = "backbone.layers.0.1.attn"

    def test_query_key_and_value_are_one_tensor_of_theirs(self):
        ours = (f"{self.block}.q.bias", f"{self.block}.kv.bias")
        assert self.layout.to_ours(f"{self.their_block}.attn.in_proj_bias") == ours
        for name in ours:
            assert self.layout.to_theirs(name, ours) == f"{self.their_block}.attn.in_proj_bias"

    @pytest.mark.parametrize(
        ("beside", "theirs"), [("q", "attn.out_proj.weight"), ("qkv", "proj.weight")]
    )
    def test_the_projection_has_another_name_in_a_global_block(self, beside, theirs):
        ours = f"{self.block}.proj.weight"
        names = [ours, f"{self.block}.{beside}.weight"]
        assert self.layout.to_theirs(ours, names) == f"{self.their_block}.{theirs}"
        assert self.layout.to_ours(f"{self.their_block}.{theirs}") == (ours,)


@pytest.mark.parametrize(
    "name",
    ["norm.gamma", "head.weight.extra", "xhead.weight", "blocks.a.0.norm1.weight", "headXweight"],
)
def test_has_no_name_for_others(name):
    assert find_layout(KINDS, "official", "classification").to_ours(name) == ()


def test_knows_what_has_no_place():
    layout = find_layout(KINDS, "official", "segmentation")
    assert "counter" in layout.reason_to_ignore("bn.num_batches_tracked")
    assert "classifier" in layout.reason_to_ignore("backbone.norm.weight")
    assert layout.reason_to_ignore("bn.running_mean") is None


@pytest.mark.slow
def test_every_variant_is_covered():
    layout = find_layout(KINDS, "official", "classification")
    for variant in VARIANTS:
        shapes = parameter_shapes(variant)
        assert all(layout.to_theirs(name, shapes) for name in shapes)


def test_a_project_without_such_models():
    message = "timm has no names for models of segmentation: choose one of mmsegmentation, ssseg"
    with pytest.raises(UserError, match=re.escape(message)):
        find_layout(KINDS, "timm", "segmentation")
