"""The variants of Twins as one table, their names elsewhere, and `create_model`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mindspore import nn
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
from mindtwins.models.twins import Classifier, Dialect, FeatureExtractor


@dataclass(frozen=True)
class Variant:
    """One row of tables 1 and 2 of the paper: the family, and one value per stage."""

    family: str
    embed_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratios: tuple[int, ...]
    depths: tuple[int, ...]
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)


_PCPVT = ("pcpvt", (64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4))
VARIANTS = {
    "pcpvt_small": Variant(*_PCPVT, (3, 4, 6, 3)),
    "pcpvt_base": Variant(*_PCPVT, (3, 4, 18, 3)),
    "pcpvt_large": Variant(*_PCPVT, (3, 8, 27, 3)),
    "svt_small": Variant("svt", (64, 128, 256, 512), (2, 4, 8, 16), (4, 4, 4, 4), (2, 2, 10, 4)),
    "svt_base": Variant("svt", (96, 192, 384, 768), (3, 6, 12, 24), (4, 4, 4, 4), (2, 2, 18, 2)),
    "svt_large": Variant("svt", (128, 256, 512, 1024), (4, 8, 16, 32), (4, 4, 4, 4), (2, 2, 18, 2)),
    # Ours, not published: small enough to train on two CPU cores in a minute or two.
    "svt_tiny": Variant("svt", (32, 64, 96, 128), (1, 2, 3, 4), (4, 4, 4, 4), (1, 2, 2, 1)),
}
UNPUBLISHED = ("svt_tiny",)

# The names of the official code (`gvt.py`) and of timm.
ALIASES = {
    "pcpvt_small_v0": "pcpvt_small",
    "pcpvt_base_v0": "pcpvt_base",
    "pcpvt_large_v0": "pcpvt_large",
    "alt_gvt_small": "svt_small",
    "alt_gvt_base": "svt_base",
    "alt_gvt_large": "svt_large",
} | {f"twins_{name}": name for name in VARIANTS if name not in UNPUBLISHED}


def list_models() -> list[str]:
    """Names of the six published models, without their aliases."""
    return [name for name in VARIANTS if name not in UNPUBLISHED]


def resolve_name(name: str) -> str:
    """The variant that a name or alias means.

    Raises:
        UserError: for an unknown name; the message says the nearest one.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        raise UserError(
            f"unknown model {nearest(name.lower(), [*VARIANTS, *ALIASES])}: the models are"
            f" {', '.join(list_models())}"
        )
    return name


def create_model(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    ckpt_path: str | Path | Checkpoint | None = None,
    features_only: bool = False,
    drop_path_rate: float = 0.0,
    window_padding: str | None = None,
    patch_rounding: str | None = None,
    block_epsilon: float | None = None,
    embed_epsilon: float | None = None,
    new_head: bool = False,
    sr_epsilon: float | None = None,
) -> nn.Cell:
    """Build a Twins model for images (N, in_channels, H, W) of at least 32 x 32 pixels.

    Args:
        name: one of `list_models()`, or its official or timm name.
        num_classes: width of the head; 0 gives the pooled features (N, embed_dims[-1]).
        in_channels: channels of the images.
        ckpt_path: a checkpoint of this model (`.ckpt` or `.safetensors`, or what
            `load_checkpoint` made of it), loaded strictly. Where it holds a head or a final norm
            that the model asked for has no use for (`features_only`, `num_classes=0`), or the
            state of a training, those are left out.
        features_only: give the four stages' maps (N, C, H, W), of strides 4, 8, 16 and 32.
        drop_path_rate: stochastic depth rate of the last block.
        window_padding, patch_rounding, block_epsilon, embed_epsilon, sr_epsilon: conventions in
            which implementations differ, see `Dialect`. Left out, they are the checkpoint's, else
            those of the official classification code (and timm's zero padding).
        new_head: the head is initialized rather than loaded.

    Returns:
        The model, in evaluation mode: call `set_train()` to train it.

    Raises:
        UserError: (a ValueError) unknown name, bad value, or a checkpoint that does not fit.
    """
    name = resolve_name(name)
    if num_classes < 0 or in_channels < 1:
        raise UserError(
            f"num_classes ({num_classes}) must be at least 0, in_channels ({in_channels}) 1"
        )
    if not 0 <= drop_path_rate < 1:
        raise UserError(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")
    checkpoint = as_checkpoint(ckpt_path)
    dialect = resolve_dialect(
        checkpoint,
        Dialect(),
        window_padding=window_padding,
        patch_rounding=patch_rounding,
        block_epsilon=block_epsilon,
        embed_epsilon=embed_epsilon,
        sr_epsilon=sr_epsilon,
    )

    model = _build(name, num_classes, in_channels, features_only, drop_path_rate, dialect)
    if checkpoint is not None:
        has_head = num_classes > 0 and not features_only and not new_head
        expect_metadata(
            checkpoint,
            variant=name,
            in_channels=in_channels,
            **({"num_classes": num_classes} if has_head else {}),
        )
        unused = ("norm.", "head.") if features_only else () if has_head else ("head.",)
        missing = ("head.",) if new_head else ()
        if new_head:
            checkpoint = checkpoint.without(missing)
        load_into(model, checkpoint, (*unused, *TRAINING_STATE), missing)
    # A new cell evaluates, yet MindSpore files its graph under "train": without this, a graph
    # compiled before `set_train()` would be used after it, without stochastic depth.
    return model.set_train(False)


def resolve_dialect(
    checkpoint: Checkpoint | None, default: Dialect, **asked: str | float | None
) -> Dialect:
    """What is asked for; where that is None what the checkpoint records, else the default."""
    recorded = checkpoint.stated.get("dialect", {}) if checkpoint is not None else {}
    stated = {key: value for key, value in asked.items() if value is not None}
    return replace(default, **recorded | stated)


def _build(
    name: str,
    num_classes: int,
    in_channels: int,
    features_only: bool,
    drop_path_rate: float,
    dialect: Dialect,
) -> nn.Cell:
    variant = VARIANTS[name]
    backbone = {
        **vars(variant),
        "in_channels": in_channels,
        "drop_path_rate": drop_path_rate,
        "dialect": dialect,
    }
    if features_only:
        return FeatureExtractor(**backbone)
    return Classifier(num_classes, **backbone)


def parameter_shapes(
    name: str, num_classes: int = 1000, in_channels: int = 3
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a classifier's parameters, in order, without allocating them."""
    name = resolve_name(name)
    return shapes_of(lambda: _build(name, num_classes, in_channels, False, 0.0, Dialect()))


def shapes_of(build: Callable[[], nn.Cell]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, in order, without allocating them."""
    with no_init_parameters():
        model = build()
    return {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
