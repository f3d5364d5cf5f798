"""Whose classifiers can be converted: their names, conventions and references."""

from __future__ import annotations

from dataclasses import replace

from mindtwins.conversion.layouts import (
    MMSEGMENTATION_BACKBONE,
    OFFICIAL_BACKBONE,
    Layout,
    ReferenceModel,
    layer,
    norm,
)
from mindtwins.models.twins import Dialect

_OFFICIAL = Layout(
    "official",
    "classification",
    (*OFFICIAL_BACKBONE, *norm("norm"), *layer("head")),
    Dialect(),
    ReferenceModel("mindtwins.reference.twins:create_reference"),
)
LAYOUTS = (
    _OFFICIAL,
    # timm kept the official classification code's names.
    replace(_OFFICIAL, project="timm"),
    # What MMSegmentation's twins2mmseg makes of an official classification checkpoint: its
    # backbone and the norm behind it, without the head.
    Layout(
        "mmsegmentation",
        "classification",
        (*MMSEGMENTATION_BACKBONE, *norm("norm")),
        Dialect(),
        ReferenceModel("mindtwins.reference.segmentation:create_backbone_reference"),
    ),
)
