"""Models that are a head over a backbone of dense prediction: their names, and how one is built."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mindspore import nn

from mindtwins.checkpoint import TRAINING_STATE, Checkpoint, expect_metadata, load_into
from mindtwins.cli import nearest
from mindtwins.errors import UserError
from mindtwins.models.twins import Backbone, Dialect
from mindtwins.models.variants import VARIANTS, list_models


def list_headed(heads: Collection[str]) -> list[str]:
    """`head_backbone` of every head and published backbone."""
    return [f"{head}_{backbone}" for head in heads for backbone in list_models()]


def resolve_headed(name: str, heads: Collection[str], kind: str) -> str:
    """The name itself, if there is such a model.

    Args:
        kind: what such a model is called, such as "segmentor".

    Raises:
        UserError: for an unknown name; the message says the nearest one.
    """
    names = [f"{head}_{backbone}" for head in heads for backbone in VARIANTS]
    if name not in names:
        raise UserError(
            f"unknown {kind} {nearest(name.lower(), names)}: the {kind}s are"
            f" {', '.join(list_headed(heads))}"
        )
    return name


def check_arguments(num_classes: int, in_channels: int, drop_path_rate: float) -> None:
    """Raise a UserError unless a headed model can be built so."""
    if num_classes < 1 or in_channels < 1:
        raise UserError(
            f"num_classes ({num_classes}) and in_channels ({in_channels}) must be at least 1"
        )
    if not 0 <= drop_path_rate < 1:
        raise UserError(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")


def build_backbone(
    variant: str, in_channels: int, drop_path_rate: float, dialect: Dialect
) -> Backbone:
    """A backbone as it is under a head: an SVT normalizes each of its stages."""
    row = VARIANTS[variant]
    return Backbone(
        **vars(row),
        in_channels=in_channels,
        drop_path_rate=drop_path_rate,
        dialect=dialect,
        normalizes_stages=row.family == "svt",
    )


def load_headed(
    model: nn.Cell,
    checkpoint: Checkpoint,
    expected: dict[str, Any],
    classifiers: tuple[str, ...],
    new_head: bool,
) -> None:
    """Load a checkpoint strictly, but for the state of a training.

    Args:
        expected: what it has to state of the model.
        classifiers: beginnings of the names of what depends on the number of classes.
        new_head: leave those as they were initialized, whatever number of classes it is for.

    Raises:
        UserError: it does not fit.
    """
    missing = classifiers if new_head else ()
    if new_head:
        expected = {key: value for key, value in expected.items() if key != "num_classes"}
        checkpoint = checkpoint.without(classifiers)
    expect_metadata(checkpoint, **expected)
    load_into(model, checkpoint, TRAINING_STATE, missing)
