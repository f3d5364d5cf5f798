"""The segmentors as a table of heads times the backbones of Twins, and `create_segmentor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindtwins.checkpoint import Checkpoint, as_checkpoint, expect_metadata
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
from mindtwins.segmentation.segmentor import Segmentor
from mindtwins.segmentation.semantic_fpn import SemanticFPNHead
from mindtwins.segmentation.upernet import AuxiliaryHead, UPerNetHead

DEFAULT_CLASSES = 150  # of ADE20K
CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
AUXILIARY_STAGE = 2  # the third

# What MMSegmentation's and sssegmentation's weights were trained with.
DIALECT = Dialect("mask", "ceil", block_epsilon=1e-5, embed_epsilon=1e-5)


@dataclass(frozen=True)
class Widths:
    """Channels of the parts behind the backbone; 0 where there is no such part."""

    neck: int
    channels: int
    auxiliary_channels: int


HEADS = {"fpn": Widths(256, 128, 0), "upernet": Widths(0, 512, 256)}
# Ours: heads as small as the backbone that is small enough to train on two CPU cores.
TINY_HEADS = {"fpn": Widths(64, 64, 0), "upernet": Widths(0, 64, 32)}


def list_segmentors() -> list[str]:
    """Names of the twelve published segmentors: `fpn_pcpvt_small` to `upernet_svt_large`."""
    return list_headed(HEADS)


def resolve_segmentor(name: str) -> str:
    """The name itself, if there is such a segmentor.

    Raises:
        UserError: for an unknown name; the message says the nearest one.
    """
    return resolve_headed(name, HEADS, "segmentor")


def split_name(name: str) -> tuple[str, str]:
    """`upernet_svt_small` -> ("upernet", "svt_small"): the head and the backbone's variant."""
    head, backbone = resolve_segmentor(name).split("_", 1)
    return head, backbone


def default_widths(name: str) -> Widths:
    """The widths of a segmentor as published."""
    head, backbone = split_name(name)
    return (TINY_HEADS if backbone in UNPUBLISHED else HEADS)[head]


def create_segmentor(
    name: str,
    num_classes: int = DEFAULT_CLASSES,
    ckpt_path: str | Path | Checkpoint | None = None,
    in_channels: int = 3,
    drop_path_rate: float = 0.0,
    window_padding: str | None = None,
    patch_rounding: str | None = None,
    block_epsilon: float | None = None,
    embed_epsilon: float | None = None,
    channels: int | None = None,
    auxiliary_channels: int | None = None,
    synchronize: bool = False,
    new_head: bool = False,
    sr_epsilon: float | None = None,
) -> Segmentor:
    """Build a segmentor for images (N, in_channels, H, W) of at least 32 x 32 pixels.

    It gives logits (N, num_classes, H/4, W/4), sides rounded as the patches are; in training a
    tuple with the auxiliary head's beside them.

    Args:
        name: one of `list_segmentors()`.
        num_classes: number of classes.
        ckpt_path: a checkpoint of this segmentor (`.ckpt` or `.safetensors`, or what
            `load_checkpoint` made of it), loaded strictly; the state of a training is left out.
        in_channels: channels of the images.
        drop_path_rate: stochastic depth rate of the last block.
        window_padding, patch_rounding, block_epsilon, embed_epsilon, sr_epsilon: conventions in
            which implementations differ, see `Dialect`. Left out, they are the checkpoint's, else
            those of MMSegmentation.
        channels, auxiliary_channels: widths of the decode head and of UPerNet's auxiliary head.
            Left out, they are the checkpoint's, else the published ones.
        synchronize: in training, batch norms take the statistics of all ranks.
        new_head: the classifiers of pixels are initialized rather than loaded.

    Returns:
        The segmentor, in evaluation mode: call `set_train()` to train it.

    Raises:
        UserError: (a ValueError) unknown name, bad value, or a checkpoint that does not fit.
    """
    name = resolve_segmentor(name)
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
    recorded = checkpoint.stated if checkpoint is not None else {}
    widths = resolve_widths(
        name,
        recorded.get("channels") if channels is None else channels,
        recorded.get("auxiliary_channels") if auxiliary_channels is None else auxiliary_channels,
    )
    segmentor = _build(name, num_classes, in_channels, widths, dialect, drop_path_rate, synchronize)
    if checkpoint is not None:
        expected = segmentor_metadata(name, num_classes, in_channels, widths)
        load_headed(segmentor, checkpoint, expected, CLASSIFIERS, new_head)
    # As in `create_model`: a new cell evaluates, yet MindSpore files its graph under "train".
    return segmentor.set_train(False)


def resolve_widths(name: str, channels: int | None, auxiliary_channels: int | None) -> Widths:
    """The widths asked for, or else the published ones.

    Raises:
        UserError: a width below 1, or one for an auxiliary head that there is not.
    """
    widths = default_widths(name)
    channels = widths.channels if channels is None else channels
    if auxiliary_channels is None:
        auxiliary_channels = widths.auxiliary_channels
    if channels < 1 or (auxiliary_channels < 1) != (widths.auxiliary_channels < 1):
        has = f"has width {widths.auxiliary_channels}" if widths.auxiliary_channels else "is absent"
        raise UserError(
            f"{name} cannot have {channels} channels and {auxiliary_channels} auxiliary channels:"
            f" widths are at least 1, and its auxiliary head {has} as published"
        )
    return Widths(widths.neck, channels, auxiliary_channels)


def widths_of(segmentor: Segmentor) -> Widths:
    """The widths that a segmentor was built with; 0 for the neck, which has one width only."""
    auxiliary = segmentor.auxiliary_head
    return Widths(0, segmentor.decode_head.channels, 0 if auxiliary is None else auxiliary.channels)


def segmentor_metadata(name: str, num_classes: int, in_channels: int, widths: Widths) -> dict:
    """What a checkpoint of a segmentor states of it, beside the dialect."""
    return {
        "task": "segmentation",
        "variant": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "channels": widths.channels,
        "auxiliary_channels": widths.auxiliary_channels,
    }


def _build(
    name: str,
    num_classes: int,
    in_channels: int,
    widths: Widths,
    dialect: Dialect,
    drop_path_rate: float,
    synchronize: bool,
) -> Segmentor:
    head, backbone_variant = split_name(name)
    backbone = build_backbone(backbone_variant, in_channels, drop_path_rate, dialect)
    dims = VARIANTS[backbone_variant].embed_dims
    if head == "fpn":
        neck = FeaturePyramid(dims, widths.neck)
        decode_head = SemanticFPNHead(widths.neck, widths.channels, num_classes, synchronize)
        return Segmentor(backbone, decode_head, neck, None, dialect, backbone_variant)
    decode_head = UPerNetHead(dims, widths.channels, num_classes, synchronize)
    auxiliary_head = AuxiliaryHead(
        dims[AUXILIARY_STAGE], widths.auxiliary_channels, num_classes, synchronize
    )
    return Segmentor(backbone, decode_head, None, auxiliary_head, dialect, backbone_variant)


def segmentor_shapes(
    name: str,
    num_classes: int = DEFAULT_CLASSES,
    in_channels: int = 3,
    channels: int | None = None,
    auxiliary_channels: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a segmentor's parameters, in order, without allocating them.

    Running mean and variance of batch norms are among them.
    """
    widths = resolve_widths(name, channels, auxiliary_channels)
    return shapes_of(lambda: _build(name, num_classes, in_channels, widths, DIALECT, 0.0, False))
