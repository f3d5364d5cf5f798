"""Whose classifiers can be converted: their names, conventions and references."""

from __future__ import annotations

from dataclasses import replace

from mindtwins.classification.mindcv import our_names
from mindtwins.conversion.layouts import (
    MMPRETRAIN_BACKBONE,
    MMSEGMENTATION_BACKBONE,
    OFFICIAL_BACKBONE,
    Layout,
    ReferenceModel,
    layer,
    norm,
    under,
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
    # MMPretrain (once MMClassification) publishes all six classifiers in names of its own. Its
    # configuration of the PCPVT sets the epsilon of every norm but those of the patch embedding.
    Layout(
        "mmpretrain",
        "classification",
        (
            *under("backbone.", "", (*MMPRETRAIN_BACKBONE, *norm("norm_after_stage3", "norm"))),
            *layer("head.fc", "head"),
        ),
        Dialect("mask", "ceil", block_epsilon=1e-5, embed_epsilon=1e-5),
        ReferenceModel("mindtwins.reference.mmpretrain:create_mmpretrain_reference"),
        dialects={
            "pcpvt": Dialect(
                "mask", "ceil", block_epsilon=1e-6, embed_epsilon=1e-5, sr_epsilon=1e-6
            )
        },
        container="state_dict",
    ),
    # What MMSegmentation's twins2mmseg makes of an official classification checkpoint: its
    # backbone and the norm behind it, without the head.
    Layout(
        "mmsegmentation",
        "classification",
        (*MMSEGMENTATION_BACKBONE, *norm("norm")),
        Dialect(),
        ReferenceModel("mindtwins.reference.segmentation:create_backbone_reference"),
        optional=(
            ("head.", "a backbone of MMSegmentation has no head"),
            ("norm.", "a backbone of MMSegmentation has no final norm"),
        ),
    ),
    # MindCV converted the authors' weights for its port, whose code computes otherwise.
    replace(
        _OFFICIAL,
        project="mindcv",
        by_order=our_names,
        remarks=(
            "used as the authors' code uses their weights, which MindCV converted; MindCV's own"
            " code has GELU's tanh approximation and epsilon 1e-07 (not 1e-05) in the norms behind"
            " the patch and sr convolutions, so weights that were trained in it learned with these",
        ),
    ),
)
