"""The segmentors as a table of heads times the backbones of Twins, and `create_segmentor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspore.nn.utils import no_init_parameters

from mindtwins.checkpoint import (
    TRAINING_STATE,
    Checkpoint,
    as_checkpoint,
    expect_metadata,
    load_into,
)
from mindtwins.cli import nearest
from mindtwins.errors import UserError
from mindtwins.models.feature_pyramid import FeaturePyramid
from mindtwins.models.twins import Backbone, Dialect
from mindtwins.models.variants import UNPUBLISHED, VARIANTS, list_models, resolve_dialect
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
    return [f"{head}_{backbone}" for head in HEADS for backbone in list_models()]


def resolve_segmentor(name: str) -> str:
    """The name itself, if there is such a segmentor.

    Raises:
        UserError: for an unknown name; the message says the nearest one.
    """
    names = [f"{head}_{backbone}" for head in HEADS for backbone in VARIANTS]
    if name not in names:
        raise UserError(
            f"unknown segmentor {nearest(name.lower(), names)}: the segmentors are"
            f" {', '.join(list_segmentors())}"
        )
    return name


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
    if num_classes < 1 or in_channels < 1:
        raise UserError(
            f"num_classes ({num_classes}) and in_channels ({in_channels}) must be at least 1"
        )
    if not 0 <= drop_path_rate < 1:
        raise UserError(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")
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
        if new_head:
            del expected["num_classes"]
            checkpoint = checkpoint.without(CLASSIFIERS)
        expect_metadata(checkpoint, **expected)
        load_into(segmentor, checkpoint, TRAINING_STATE, CLASSIFIERS if new_head else ())
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
    variant = VARIANTS[backbone_variant]
    backbone = Backbone(
        **vars(variant),
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        dialect=dialect,
        normalizes_stages=variant.family == "svt",
    )
    dims = variant.embed_dims
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
    with no_init_parameters():
        segmentor = _build(name, num_classes, in_channels, widths, DIALECT, 0.0, False)
    return {parameter.name: tuple(parameter.shape) for parameter in segmentor.get_parameters()}
