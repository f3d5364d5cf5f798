"""Whose segmentors can be converted: their names, conventions and references."""

from __future__ import annotations

from mindtwins.conversion.layouts import (
    BUFFERS,
    MMSEGMENTATION_BACKBONE,
    OFFICIAL_BACKBONE,
    Layout,
    ReferenceModel,
    Rule,
    layer,
    norm,
    under,
    unit,
)
from mindtwins.models.twins import Dialect
from mindtwins.segmentation.variants import DIALECT

_STAGE_NORMS = norm("norm_list.{i}")


def _mmsegmentation_unit(theirs: str) -> tuple[Rule, ...]:
    return unit(f"{theirs}.conv", f"{theirs}.bn", theirs)


_MMSEGMENTATION_HEADS = (
    *layer("neck.lateral_convs.{i}.conv"),
    *layer("neck.fpn_convs.{i}.conv"),
    *_mmsegmentation_unit("decode_head.scale_heads.{i}.{j}"),
    *_mmsegmentation_unit("decode_head.psp_modules.{i}.1"),
    *_mmsegmentation_unit("decode_head.bottleneck"),
    *_mmsegmentation_unit("decode_head.lateral_convs.{i}"),
    *_mmsegmentation_unit("decode_head.fpn_convs.{i}"),
    *_mmsegmentation_unit("decode_head.fpn_bottleneck"),
    *layer("decode_head.conv_seg"),
    *_mmsegmentation_unit("auxiliary_head.convs.{i}"),
    *layer("auxiliary_head.conv_seg"),
)
_SSSEGMENTATION_HEADS = (
    *unit("ppm_net.branches.{i}.1", "ppm_net.branches.{i}.2", "decode_head.psp_modules.{i}.1"),
    *unit("ppm_net.bottleneck.0", "ppm_net.bottleneck.1", "decode_head.bottleneck"),
    *unit("lateral_convs.{i}.0", "lateral_convs.{i}.1", "decode_head.lateral_convs.{i}"),
    *unit("fpn_convs.{i}.0", "fpn_convs.{i}.1", "decode_head.fpn_convs.{i}"),
    *unit("decoder.0", "decoder.1", "decode_head.fpn_bottleneck"),
    *layer("decoder.4", "decode_head.conv_seg"),
    *unit("auxiliary_decoder.0", "auxiliary_decoder.1", "auxiliary_head.convs.0"),
    *layer("auxiliary_decoder.4", "auxiliary_head.conv_seg"),
)

_CLASSIFIER = (
    (r"backbone\.(norm|head)\.(weight|bias)", "of the classifier, which segmentation does not use"),
)

_REFERENCE = "mindtwins.reference.segmentation:create_segmentation_reference"

LAYOUTS = (
    Layout(
        "mmsegmentation",
        "segmentation",
        (
            *under("backbone.", "backbone.", (*MMSEGMENTATION_BACKBONE, *_STAGE_NORMS)),
            *_MMSEGMENTATION_HEADS,
        ),
        DIALECT,
        ReferenceModel(_REFERENCE),
    ),
    Layout(
        "sssegmentation",
        "segmentation",
        (
            *under("backbone_net.", "backbone.", (*MMSEGMENTATION_BACKBONE, *_STAGE_NORMS)),
            *_SSSEGMENTATION_HEADS,
        ),
        DIALECT,
        ReferenceModel(_REFERENCE, rename="mindtwins.reference.segmentation:rename_sssegmentation"),
    ),
    # The official segmentation code is built on MMSegmentation 0.x.
    Layout(
        "official",
        "segmentation",
        (
            *under("backbone.", "backbone.", (*OFFICIAL_BACKBONE, *_STAGE_NORMS)),
            *_MMSEGMENTATION_HEADS,
        ),
        Dialect("mask", "floor", block_epsilon=1e-6, embed_epsilon=1e-5),
        ReferenceModel(
            _REFERENCE,
            {
                "official_names": True,
                "patch_rounding": "floor",
                "block_epsilon": 1e-6,
                "embed_epsilon": 1e-5,
            },
        ),
        (*BUFFERS, *_CLASSIFIER),
    ),
)
