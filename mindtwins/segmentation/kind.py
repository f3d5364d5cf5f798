"""What a conversion has to know of segmentors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mindspore import nn

from mindtwins.checkpoint import Checkpoint
from mindtwins.conversion.kinds import Shapes, first_axis
from mindtwins.conversion.openmmlab import TestRecipe
from mindtwins.conversion.recognize import Recognition, recognize_headed
from mindtwins.data.colors import distinct_colors
from mindtwins.segmentation import ade20k
from mindtwins.segmentation.layouts import LAYOUTS
from mindtwins.segmentation.protocol import as_tested
from mindtwins.segmentation.segmentor import SegmentorOutputs
from mindtwins.segmentation.task import Segmentation
from mindtwins.segmentation.variants import (
    DEFAULT_CLASSES,
    Widths,
    create_segmentor,
    default_widths,
    resolve_segmentor,
    resolve_widths,
    segmentor_shapes,
)
from mindtwins.training.recorded import defaults, describe_use

_BACKBONE = "backbone."
_HEADS = ("decode_head", "auxiliary_head")


class SegmentorKind:
    """See `mindtwins.conversion.kinds.ModelKind`. The heads' widths are read off the tensors."""

    layouts = LAYOUTS
    head = tuple(
        f"{head}.conv_seg.{parameter}" for head in _HEADS for parameter in ("weight", "bias")
    )
    stem = f"{_BACKBONE}patch_embeds.0.proj.weight"
    architecture_keys = ("num_classes", "in_channels", "channels", "auxiliary_channels")
    default_classes = DEFAULT_CLASSES
    published_on = "ADE20K"
    fewest_classes = 1
    # They fill no whole patches and windows: on both axes in three stages, on one in the last.
    verified_size = (200, 260)
    keeps_dialect = True
    pipeline = "image-segmentation"
    example = "logits = model(images)  # of pictures prepared by model.preprocessing"

    def owns(self, names: Collection[str]) -> bool:
        return any(name.startswith(f"{_HEADS[0]}.") for name in names)

    def recognize(self, seen: Shapes) -> Recognition:
        pyramid = any(name.startswith(("neck.", "decode_head.scale_heads.")) for name in seen)
        head = "fpn" if pyramid else "upernet"
        return recognize_headed(head, seen, _BACKBONE)

    def resolve(self, name: str) -> str:
        return resolve_segmentor(name)

    def count_classes(self, seen: Shapes) -> int:
        return first_axis(seen, self.head)

    def shapes(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> Shapes:
        return segmentor_shapes(name, **self.architecture(name, num_classes, in_channels, seen))

    def architecture(self, name: str, num_classes: int, in_channels: int, seen: Shapes) -> dict:
        widths = self._widths(name, seen)
        return {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "channels": widths.channels,
            "auxiliary_channels": widths.auxiliary_channels,
        }

    def use(self, architecture: Mapping) -> dict:
        """As ADE20K's where there are as many classes, which the published segmentors have."""
        preprocessing = defaults(Segmentation.preprocessing_options) | {"image_size": 512}
        is_ade20k = architecture["num_classes"] == len(ade20k.CLASSES)
        return describe_use(
            ade20k.CLASSES if is_ade20k else None,
            "bilinear",
            preprocessing,
            {"dataset": "ade20k" if is_ade20k else "pairs"},
        )

    def as_tested(self, recipe: TestRecipe) -> tuple[dict, list[str]]:
        return as_tested(recipe)

    def create(self, checkpoint: Checkpoint) -> nn.Cell:
        stated = checkpoint.stated
        architecture = {key: stated[key] for key in self.architecture_keys if key in stated}
        return create_segmentor(stated["variant"], ckpt_path=checkpoint, **architecture)

    def palette(self, classes: int) -> list[list[int]]:
        return [list(color) for color in distinct_colors(classes)]

    def outputs(self, checkpoint: Checkpoint) -> nn.Cell:
        return SegmentorOutputs(self.create(checkpoint))

    def _widths(self, name: str, seen: Shapes) -> Widths:
        published = default_widths(name)
        last = "scale_heads.0.0" if published.neck else "fpn_bottleneck"
        channels = seen.get(f"decode_head.{last}.conv.weight", (published.channels,))[:1]
        auxiliary: tuple[int, ...] = (published.auxiliary_channels,)
        if published.auxiliary_channels:
            auxiliary = seen.get("auxiliary_head.convs.0.conv.weight", auxiliary)[:1]
        # A misshapen tensor has no first axis; that it does not fit is said elsewhere.
        return resolve_widths(name, next(iter(channels), None), next(iter(auxiliary), None))
