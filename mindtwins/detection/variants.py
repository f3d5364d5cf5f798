"""The detectors as a table of heads times the backbones of Twins, and `create_detector`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindtwins.checkpoint import Checkpoint, as_checkpoint, expect_metadata
from mindtwins.detection.detector import Detector
from mindtwins.detection.mask_rcnn import BoxHead, MaskHead, MaskRCNN, RoIHead, RPNHead
from mindtwins.detection.postprocessing import PostProcessing
from mindtwins.detection.retinanet import RetinaHead, RetinaNet
from mindtwins.errors import UserError
from mindtwins.models.feature_pyramid import FeaturePyramid
from mindtwins.models.headed import (
    build_backbone,
    check_arguments,
    list_headed,
    load_headed,
    resolve_headed,
)
from mindtwins.models.twins import Dialect
from mindtwins.models.variants import UNPUBLISHED, VARIANTS, resolve_dialect, shapes_of

DEFAULT_CLASSES = 80  # of COCO
# What depends on the number of classes.
CLASSIFIERS = (
    "bbox_head.retina_cls.",
    "roi_head.bbox_head.fc_cls.",
    "roi_head.bbox_head.fc_reg.",
    "roi_head.mask_head.conv_logits.",
)

DIALECT = Dialect("zeros", "floor", block_epsilon=1e-6, embed_epsilon=1e-5)


@dataclass(frozen=True)
class Widths:
    """Channels of the pyramid and the heads' convolutions, and of the box head's linear layers."""

    channels: int
    hidden: int


HEADS = ("retinanet", "maskrcnn")
WIDTHS = Widths(256, 1024)
# Ours: heads as small as the backbone that is small enough to train on two CPU cores.
TINY_WIDTHS = Widths(64, 256)


def list_detectors() -> list[str]:
    """Names of the twelve published detectors: `retinanet_pcpvt_small` to `maskrcnn_svt_large`."""
    return list_headed(HEADS)


def resolve_detector(name: str) -> str:
    """The name itself, if there is such a detector.

    Raises:
        UserError: for an unknown name; the message says the nearest one.
    """
    return resolve_headed(name, HEADS, "detector")


def split_name(name: str) -> tuple[str, str]:
    """`maskrcnn_svt_small` -> ("maskrcnn", "svt_small"): the head and the backbone's variant."""
    head, backbone = resolve_detector(name).split("_", 1)
    return head, backbone


def create_detector(
    name: str,
    num_classes: int = DEFAULT_CLASSES,
    ckpt_path: str | Path | Checkpoint | None = None,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    window_padding: str | None = None,
    patch_rounding: str | None = None,
    block_epsilon: float | None = None,
    embed_epsilon: float | None = None,
    postprocessing: PostProcessing | None = None,
    new_head: bool = False,
    sr_epsilon: float | None = None,
) -> Detector:
    """Build a detector for images (N, in_channels, H, W) of at least 32 x 32 pixels.

    Its `predict` gives boxes, scores, labels and, of a Mask R-CNN, masks.

    Args:
        name: one of `list_detectors()`.
        num_classes: number of classes, without the background.
        ckpt_path: a checkpoint of this detector (`.ckpt` or `.safetensors`, or what
            `load_checkpoint` made of it), loaded strictly; the state of a training is left out.
        in_channels: channels of the images.
        drop_path_rate: stochastic depth rate of the last block; the authors trained all with 0.2.
        window_padding, patch_rounding, block_epsilon, embed_epsilon, sr_epsilon: conventions in
            which implementations differ, see `Dialect`. Left out, they are the checkpoint's, else
            those of the official detection code.
        postprocessing: what is done after the network; left out, it is the checkpoint's, else that
            of MMDetection 2.8.0.
        new_head: what depends on the number of classes is initialized rather than loaded.

    Returns:
        The detector, in evaluation mode: call `set_train()` to train it.

    Raises:
        UserError: (a ValueError) unknown name, bad value, or a checkpoint that does not fit.
    """
    name = resolve_detector(name)
    check_arguments(num_classes, in_channels, drop_path_rate)
    checkpoint = as_checkpoint(ckpt_path)
    if checkpoint is not None:
        expect_metadata(checkpoint, variant=name)
    dialect = resolve_dialect(
        checkpoint,
        DIALECT,
        window_padding=window_padding,
        patch_rounding=patch_rounding,
        block_epsilon=block_epsilon,
        embed_epsilon=embed_epsilon,
        sr_epsilon=sr_epsilon,
    )
    if postprocessing is None:
        postprocessing = _recorded_postprocessing(checkpoint)
    detector = _build(name, num_classes, in_channels, dialect, postprocessing, drop_path_rate)
    if checkpoint is not None:
        expected = detector_metadata(name, num_classes, in_channels)
        load_headed(detector, checkpoint, expected, CLASSIFIERS, new_head)
    # As in `create_model`: a new cell evaluates, yet MindSpore files its graph under "train".
    return detector.set_train(False)


def detector_metadata(name: str, num_classes: int, in_channels: int) -> dict:
    """What a checkpoint of a detector states of it, beside the dialect and the postprocessing."""
    return {
        "task": "detection",
        "variant": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
    }


def _recorded_postprocessing(checkpoint: Checkpoint | None) -> PostProcessing:
    """What a checkpoint records; where it says nothing, that of MMDetection 2.8.0.

    Raises:
        UserError: it records what there is not.
    """
    if checkpoint is None:
        return PostProcessing()
    recorded = checkpoint.stated.get("postprocessing", {})
    if not isinstance(recorded, dict) or not recorded.keys() <= vars(PostProcessing()).keys():
        raise UserError(
            f"the checkpoint {checkpoint.path} records the postprocessing {recorded!r}, which is "
            f"none of {', '.join(vars(PostProcessing()))}: state create_detector's postprocessing"
        )
    return PostProcessing(**recorded)


def _build(
    name: str,
    num_classes: int,
    in_channels: int,
    dialect: Dialect,
    postprocessing: PostProcessing,
    drop_path_rate: float,
) -> Detector:
    head, backbone_variant = split_name(name)
    widths = TINY_WIDTHS if backbone_variant in UNPUBLISHED else WIDTHS
    backbone = build_backbone(backbone_variant, in_channels, drop_path_rate, dialect)
    dims, channels = VARIANTS[backbone_variant].embed_dims, widths.channels
    rest = (num_classes, postprocessing, dialect, backbone_variant)
    if head == "retinanet":
        neck = FeaturePyramid(dims[RetinaNet.first_stage :], channels, convolved=2)
        return RetinaNet(backbone, neck, *rest, bbox_head=RetinaHead(channels, num_classes))
    return MaskRCNN(
        backbone,
        FeaturePyramid(dims, channels, pooled=1),
        *rest,
        rpn_head=RPNHead(channels),
        roi_head=RoIHead(
            BoxHead(channels, widths.hidden, num_classes), MaskHead(channels, num_classes)
        ),
    )


def detector_shapes(
    name: str, num_classes: int = DEFAULT_CLASSES, in_channels: int = 3
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a detector's parameters, in order, without allocating them."""
    return shapes_of(lambda: _build(name, num_classes, in_channels, DIALECT, PostProcessing(), 0.0))
