"""The evaluation transform as nodes of a graph: from a picture of any size to the model's input.

Pillow resizes one axis after the other and rounds to bytes in between: so do the two `Resize`
nodes. They compute in float32 where Pillow has integers, so that a value may round to the other
side. They go across first, as Pillow does up to version 12; from 13 on it goes down first where
that saves it work, in pictures more than twice as high as they are wide: these differ by some
levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mindtwins.classification.transforms import resized_side
from mindtwins.errors import UserError
from mindtwins.export.graph import Graph, Length, Port
from mindtwins.export.operations import Map

IMAGE = "image"


def write_preprocessing(graph: Graph, preprocessing: Mapping[str, Any]) -> Map:
    """One picture, uint8 (1, H, W, 3) RGB -> what `EvaluationTransform` gives for it.

    Args:
        graph: gets the input and the nodes; its opset is 18 at least.
        preprocessing: the options, as a checkpoint records them.

    Raises:
        UserError: the crop is larger than what the shorter side is resized to.
    """
    size = preprocessing["image_size"]
    short_side = resized_side(size, preprocessing["crop_pct"])
    if short_side < size:
        raise UserError(
            f"crop_pct {preprocessing['crop_pct']:g} crops more than there is, which an exported"
            " file cannot pad: export without --preprocess"
        )
    graph.inputs.append(Port(IMAGE, (1, "height", "width", 3), "uint8"))
    height, width = graph.lengths(IMAGE, 1, 2)
    pixels = graph.add("Cast", IMAGE, to="float32")
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    new_height, new_width = _resized(graph, height, width, short_side)
    pixels = _resize(graph, pixels, height, new_width)
    pixels = _resize(graph, pixels, new_height, new_width)
    top, left = _margin(new_height, size), _margin(new_width, size)
    starts, ends = graph.shape(top, left), graph.shape(top + size, left + size)
    pixels = graph.add("Slice", pixels, starts, ends, graph.constant([2, 3]))
    side = Length(graph, size)
    return Map(_normalize(graph, pixels, preprocessing), side, side)


def _resized(graph: Graph, height: Length, width: Length, short_side: int) -> tuple[Length, Length]:
    """Height and width with the shorter side at that length; the longer one rounds down."""
    shorter = Length(graph, graph.add("Min", height.name, width.name))
    return height * short_side // shorter, width * short_side // shorter


def _resize(graph: Graph, x: str, height: Length, width: Length) -> str:
    """Bicubic, with a wider filter where it shrinks, rounded to bytes."""
    resized = graph.add(
        "Resize",
        x,
        "",
        "",
        graph.shape(1, 3, height, width),
        mode="cubic",
        coordinate_transformation_mode="half_pixel",
        antialias=1,
        cubic_coeff_a=-0.5,
        exclude_outside=1,
    )
    low, high, half = (graph.constant(value, np.float32) for value in (0, 255, 0.5))
    clipped = graph.add("Clip", resized, low, high)
    return graph.add("Floor", graph.add("Add", clipped, half))


def _margin(length: Length, size: int) -> Length:
    """Half of what is cut away, a half rounded to even, as Python does."""
    missing = length - size
    half = missing // 2
    return half + (missing % 2) * (half % 2)


def _normalize(graph: Graph, x: str, preprocessing: Mapping[str, Any]) -> str:
    """(x / 255 - mean) / std, rounded as by `mindtwins.data.normalize.Normalize`."""
    mean, std = (
        graph.constant(np.reshape(preprocessing[name], (1, 3, 1, 1)), np.float32)
        for name in ("mean", "std")
    )
    levels = graph.add("Div", x, graph.constant(255, np.float32))
    return graph.add("Div", graph.add("Sub", levels, mean), std)
