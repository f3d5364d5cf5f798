"""Whose detectors can be converted: their names, conventions and references."""

from __future__ import annotations

from mindtwins.conversion.layouts import (
    OFFICIAL_BACKBONE,
    Layout,
    ReferenceModel,
    layer,
    norm,
    under,
)
from mindtwins.detection.variants import DIALECT

_NECK = (
    *layer("neck.lateral_convs.{i}.conv"),
    *layer("neck.fpn_convs.{i}.conv"),
)
_RETINANET = (
    *layer("bbox_head.cls_convs.{i}.conv"),
    *layer("bbox_head.reg_convs.{i}.conv"),
    *layer("bbox_head.retina_cls"),
    *layer("bbox_head.retina_reg"),
)
_MASK_RCNN = (
    *layer("rpn_head.rpn_conv"),
    *layer("rpn_head.rpn_cls"),
    *layer("rpn_head.rpn_reg"),
    *layer("roi_head.bbox_head.shared_fcs.{i}"),
    *layer("roi_head.bbox_head.fc_cls"),
    *layer("roi_head.bbox_head.fc_reg"),
    *layer("roi_head.mask_head.convs.{i}.conv"),
    *layer("roi_head.mask_head.upsample"),
    *layer("roi_head.mask_head.conv_logits"),
)

LAYOUTS = (
    # The official detection code is built on MMDetection 2.8.0; the names are the same in 3.x.
    Layout(
        "official",
        "detection",
        (
            *under("backbone.", "backbone.", (*OFFICIAL_BACKBONE, *norm("norm_list.{i}"))),
            *_NECK,
            *_RETINANET,
            *_MASK_RCNN,
        ),
        DIALECT,
        ReferenceModel("mindtwins.reference.detection:create_detection_reference"),
        (
            (
                r"backbone\.(norm|head)\.(weight|bias)",
                "of the classifier, which detection does not use",
            ),
        ),
        container="state_dict",
    ),
)
