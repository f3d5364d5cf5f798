"""What a conversion has to know of classifiers and of segmentors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mindtwins.conversion.recognize import Recognition, recognize
from mindtwins.models.variants import parameter_shapes, resolve_name
from mindtwins.segmentation.variants import (
    Widths,
    default_widths,
    resolve_segmentor,
    resolve_widths,
    segmentor_metadata,
    segmentor_shapes,
)

Shapes = Mapping[str, tuple[int, ...]]

_BACKBONE = "backbone."


class ModelKind(Protocol):
    """One kind of model. Names are ours; `seen` are the shapes that a source has for them.

    Attributes:
        head: the parameters whose first axis is the classes.
        stem: the convolution whose second axis is the images' channels.
        default_classes: as published.
        fewest_classes: that a model can have.
    """

    head: tuple[str, ...]
    stem: str
    default_classes: int
    fewest_classes: int

    def recognize(self, seen: Shapes) -> Recognition:
        """The model that agrees best with the shapes."""

    def resolve(self, name: str) -> str:
        """The model that a name of the user's means."""

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        """What has to be filled."""

    def metadata(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        """What a checkpoint states of the model."""


class ClassifierKind:
    """See `ModelKind`."""

    head = ("head.weight", "head.bias")
    stem = "patch_embeds.0.proj.weight"
    default_classes = 1000
    fewest_classes = 0

    def recognize(self, seen: Shapes) -> Recognition:
        return recognize(seen)

    def resolve(self, name: str) -> str:
        return resolve_name(name)

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        return parameter_shapes(name, num_classes, in_channels)

    def metadata(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        return {"variant": name, "num_classes": num_classes, "in_channels": in_channels}


class SegmentorKind:
    """See `ModelKind`. The widths of the heads are read off the tensors."""

    head = tuple(
        f"{head}.conv_seg.{parameter}"
        for head in ("decode_head", "auxiliary_head")
        for parameter in ("weight", "bias")
    )
    stem = "backbone.patch_embeds.0.proj.weight"
    default_classes = 150
    fewest_classes = 1

    def recognize(self, seen: Shapes) -> Recognition:
        pyramid = any(name.startswith(("neck.", "decode_head.scale_heads.")) for name in seen)
        head = "fpn" if pyramid else "upernet"
        backbone = recognize(
            {
                name.removeprefix(_BACKBONE): shape
                for name, shape in seen.items()
                if name.startswith(_BACKBONE)
            }
        )
        words = f"head: {head}, {backbone.seen}"
        return Recognition(f"{head}_{backbone.variant}", backbone.exact, words)

    def resolve(self, name: str) -> str:
        return resolve_segmentor(name)

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        widths = self._widths(name, seen)
        return segmentor_shapes(
            name, num_classes, in_channels, widths.channels, widths.auxiliary_channels
        )

    def metadata(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        return segmentor_metadata(name, num_classes, in_channels, self._widths(name, seen))

    def _widths(self, name: str, seen: Shapes) -> Widths:
        published = default_widths(name)
        last = "scale_heads.0.0" if published.neck else "fpn_bottleneck"
        channels = seen.get(f"decode_head.{last}.conv.weight", (published.channels,))[:1]
        auxiliary = (published.auxiliary_channels,)
        if published.auxiliary_channels:
            auxiliary = seen.get("auxiliary_head.convs.0.conv.weight", auxiliary)[:1]
        # A misshapen tensor has no first axis; that it does not fit is said elsewhere.
        return resolve_widths(name, *channels or (None,), *auxiliary or (None,))


KINDS: dict[str, ModelKind] = {"classification": ClassifierKind(), "segmentation": SegmentorKind()}


def task_of(names: Mapping[str, object]) -> str:
    """The task of a model with these parameters."""
    is_segmentor = any(name.startswith(_BACKBONE) for name in names)
    return "segmentation" if is_segmentor else "classification"
