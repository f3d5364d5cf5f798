"""What models are made of, as nodes of a graph: the counterpart of `mindtwins.layers`.

Functions take the graph first and the names of values; parameters are called as in the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mindtwins.export.graph import Graph, Length, Port


@dataclass(frozen=True)
class Map:
    """A map of a graph, channels last or first, and its sides.

    Attributes:
        value: what it is called.
        height, width: its sides.
    """

    value: str
    height: Length
    width: Length


def images(graph: Graph, batch: int | None, channels: int, side: int | None) -> Map:
    """The input (B, channels, H, W), normalized; None is for any batch, or for sides of any length.

    Of a fixed side, both have it.
    """
    port = Port("images", (batch or "batch", channels, side or "height", side or "width"))
    graph.inputs.append(port)
    if side is not None:
        return Map(port.name, Length(graph, side), Length(graph, side))
    return Map(port.name, *graph.lengths(port.name, 2, 3))


def channels_last(graph: Graph, x: Map) -> Map:
    """(B, C, H, W) -> (B, H, W, C)."""
    return replace(x, value=graph.add("Transpose", x.value, perm=[0, 2, 3, 1]))


def channels_first(graph: Graph, x: Map) -> Map:
    """(B, H, W, C) -> (B, C, H, W)."""
    return replace(x, value=graph.add("Transpose", x.value, perm=[0, 3, 1, 2]))


def linear(graph: Graph, x: str, name: str) -> str:
    """`x W^T + b` over the last axis.

    The weight is stored as (in, out), so that it is multiplied as it lies there, and quantized.
    """
    product = graph.add("MatMul", x, graph.weight(f"{name}.weight", transposed=True))
    return graph.add("Add", product, graph.weight(f"{name}.bias"))


def layer_norm(graph: Graph, x: str, name: str, epsilon: float) -> str:
    """Normalize the last axis."""
    gamma, beta = graph.weight(f"{name}.gamma"), graph.weight(f"{name}.beta")
    return graph.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)


def gelu(graph: Graph, x: str) -> str:
    """The exact GELU: x (1 + erf(x / sqrt 2)) / 2."""
    root, one, half = (graph.constant(v, np.float32) for v in (math.sqrt(2), 1, 0.5))
    bell = graph.add("Erf", graph.add("Div", x, root))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", bell, one)), half)


def convolution(
    graph: Graph, x: Map, name: str, stride: int = 1, padding: int = 0, groups: int = 1
) -> Map:
    """A convolution of a map (B, C, H, W); with a bias where the checkpoint has one.

    A patch's stride is its kernel; other strides than 1 drop what fills no patch.
    """
    weight = graph.tensors[f"{name}.weight"]
    kernel = list(weight.shape[2:])
    inputs = [graph.weight(f"{name}.weight")]
    if f"{name}.bias" in graph.tensors:
        inputs.append(graph.weight(f"{name}.bias"))
    # Every attribute is stated: not all converters know the defaults.
    value = graph.add(
        "Conv",
        x.value,
        *inputs,
        kernel_shape=kernel,
        strides=[stride, stride],
        pads=[padding] * 4,
        dilations=[1, 1],
        group=groups,
    )
    return Map(value, x.height // stride, x.width // stride)


def batch_norm(graph: Graph, x: Map, name: str) -> Map:
    """Normalize the channels of a map (B, C, H, W) by their moving statistics."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = [graph.weight(f"{name}.{weight}") for weight in names]
    return replace(x, value=graph.add("BatchNormalization", x.value, *weights, epsilon=1e-5))


def pad_bottom_right(graph: Graph, x: str, bottom: Length, right: Length, axis: int) -> str:
    """Zeros below and to the right of a map whose height is that axis (of four)."""
    if bottom.is_zero and right.is_zero:
        return x
    after: list[Length | int] = [0, 0, 0, 0]
    after[axis : axis + 2] = bottom, right
    return graph.add("Pad", x, graph.shape(0, 0, 0, 0, *after), mode="constant")


def crop_top_left(graph: Graph, x: str, to: Map, bottom: Length, right: Length) -> str:
    """(B, H + bottom, W + right, C) -> (B, H, W, C)."""
    if bottom.is_zero and right.is_zero:
        return x
    ends = graph.shape(to.height, to.width)
    return graph.add("Slice", x, graph.constant([0, 0]), ends, graph.constant([1, 2]))


def resize(graph: Graph, x: Map, to: Map, mode: str = "linear") -> Map:
    """Bring a map (B, C, H, W) to the sides of another; torch's F.interpolate.

    Args:
        mode: "linear" (torch's bilinear, align_corners False) or "nearest".
    """
    if (x.height, x.width) == (to.height, to.width):
        return x
    how = {"linear": ("half_pixel", {}), "nearest": ("asymmetric", {"nearest_mode": "floor"})}
    coordinates, more = how[mode]
    batch_channels = graph.add(
        "Slice", graph.add("Shape", x.value), graph.constant([0]), graph.constant([2])
    )
    sizes = graph.add("Concat", batch_channels, to.height.name, to.width.name, axis=0)
    value = graph.add(
        "Resize",
        x.value,
        "",
        "",
        sizes,
        mode=mode,
        coordinate_transformation_mode=coordinates,
        **more,
    )
    return Map(value, to.height, to.width)


def average_pool(graph: Graph, x: Map, bins: int) -> Map:
    """(B, C, H, W) -> (B, C, bins, bins); torch's AdaptiveAvgPool2d, as two matrix products."""
    rows = _bin_means(graph, x.height, bins)
    columns = graph.add("Transpose", _bin_means(graph, x.width, bins), perm=[1, 0])
    value = graph.add("MatMul", graph.add("MatMul", rows, x.value), columns)
    side = Length(graph, bins)
    return Map(value, side, side)


def _bin_means(graph: Graph, size: Length, bins: int) -> str:
    """Weights (bins, size): bin i averages from floor(i size / bins) to ceil((i + 1) size / bins).

    Neighboring bins overlap where the size is no multiple of them.
    """
    numbers = np.arange(bins)[:, None]
    parts, last = graph.constant([bins]), graph.constant([bins - 1])
    begin = graph.add("Div", graph.add("Mul", graph.constant(numbers), size.name), parts)
    end = graph.add("Mul", graph.constant(numbers + 1), size.name)
    end = graph.add("Div", graph.add("Add", end, last), parts)
    places = positions(graph, size)
    outside = graph.add("Less", places, begin)
    inside = graph.add("And", graph.add("Not", outside), graph.add("Less", places, end))
    count = graph.add("Cast", graph.add("Sub", end, begin), to="float32")
    return graph.add("Div", graph.add("Cast", inside, to="float32"), count)


def positions(graph: Graph, size: Length) -> str:
    """0 to size - 1, int64."""
    scalar = graph.add("Squeeze", size.name, graph.constant([0]))
    return graph.add("Range", graph.constant(0), scalar, graph.constant(1))
