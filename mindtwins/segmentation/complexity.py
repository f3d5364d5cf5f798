"""Parameters and multiply-adds of the segmentors, counted layer by layer."""

from __future__ import annotations

import math
import re

from mindtwins.models.complexity import Part, count_parameters, count_stages, format_parts
from mindtwins.models.variants import VARIANTS
from mindtwins.segmentation.upernet import POOL_BINS
from mindtwins.segmentation.variants import (
    AUXILIARY_STAGE,
    DEFAULT_CLASSES,
    DIALECT,
    default_widths,
    segmentor_shapes,
    split_name,
)

# How many times the inputs and outputs of its convolutions a kind of head keeps in training, by
# what an image more takes on a CPU at 512 pixels: UPerNet has its maps again resized and joined.
KEPT = {"fpn": 1.0, "upernet": 2.1}


def count(
    name: str,
    image_size: int = 512,
    num_classes: int = DEFAULT_CLASSES,
    in_channels: int = 3,
    patch_rounding: str = DIALECT.patch_rounding,
) -> list[Part]:
    """Count each stage, the neck and the heads of a segmentor for one square image.

    Counted are the products of linear layers, convolutions and attention; those of the auxiliary
    head occur in training alone. Changing the size of maps, norms, GELU, ReLU and additions are
    left out.
    """
    head, backbone = split_name(name)
    shapes = segmentor_shapes(name, num_classes, in_channels)
    shapes = {name: shape for name, shape in shapes.items() if ".bn.moving_" not in name}
    of_backbone = {
        name.removeprefix("backbone."): shape
        for name, shape in shapes.items()
        if name.startswith("backbone.")
    }
    parts = count_stages(VARIANTS[backbone], of_backbone, image_size, in_channels, patch_rounding)
    sides = tuple(part.output[-1] for part in parts)
    widths = default_widths(name)
    finest, third = (sides[0],) * 2, (sides[AUXILIARY_STAGE],) * 2
    for part, title, output in (
        ("neck.", "neck", (widths.neck, *finest)),
        ("decode_head.", "decode head", (num_classes, *finest)),
        ("auxiliary_head.", "auxiliary head", (num_classes, *third)),
    ):
        convolutions = [
            (shape, _pixels(name, sides))
            for name, shape in shapes.items()
            if name.startswith(part) and len(shape) == 4
        ]
        products = sum(math.prod(shape) * pixels for shape, pixels in convolutions)
        kept = sum((shape[0] + shape[1]) * pixels for shape, pixels in convolutions)
        if products:
            parameters = count_parameters(shapes, (part,))
            parts.append(Part(title, output, parameters, products, 0, round(KEPT[head] * kept)))
    return parts


def _pixels(name: str, sides: tuple[int, ...]) -> int:
    """How many pixels the map has that a convolution, known by its weight's name, computes."""
    if match := re.search(r"psp_modules\.(\d)", name):
        return POOL_BINS[int(match[1])] ** 2
    if match := re.search(r"(lateral|fpn)_convs\.(\d)", name):
        return sides[int(match[2])] ** 2
    if match := re.search(r"scale_heads\.(\d)\.(\d)", name):  # every other layer doubles the sides
        return (sides[int(match[1])] * 2 ** (int(match[2]) // 2)) ** 2
    if "decode_head.bottleneck" in name:
        return sides[-1] ** 2
    return sides[AUXILIARY_STAGE if name.startswith("auxiliary_head.") else 0] ** 2


def format_summary(
    name: str,
    image_size: int = 512,
    num_classes: int = DEFAULT_CLASSES,
    in_channels: int = 3,
    patch_rounding: str = DIALECT.patch_rounding,
) -> str:
    """The counts as a table for people, with their totals."""
    parts = count(name, image_size, num_classes, in_channels, patch_rounding)
    return format_parts(name, image_size, parts)
