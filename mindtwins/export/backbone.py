"""The backbone as nodes of a graph: read it beside `mindtwins/models/twins.py`.

Tokens are channels-last maps (B, H, W, C), but for convolutions, which ONNX has channels first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mindtwins.export.graph import Graph, Length
from mindtwins.export.operations import (
    Map,
    channels_first,
    channels_last,
    convolution,
    crop_top_left,
    gelu,
    layer_norm,
    linear,
    pad_bottom_right,
    positions,
)
from mindtwins.models.twins import PATCH_SIZES, WINDOW, Dialect
from mindtwins.models.variants import Variant


def write_stages(
    graph: Graph,
    images: Map,
    variant: Variant,
    dialect: Dialect,
    prefix: str = "",
    normalizes_stages: bool = False,
) -> list[Map]:
    """Images (B, C, H, W) -> the four stages' token maps (B, H_i, W_i, C_i).

    Args:
        graph: gets the nodes; its tensors are those of a checkpoint.
        images: its input.
        variant, dialect: of the model.
        prefix: of the backbone's parameters.
        normalizes_stages: see `mindtwins.models.twins.Backbone`.
    """
    stages: list[Map] = []
    for stage, patch in enumerate(PATCH_SIZES):
        x = images if stage == 0 else channels_first(graph, stages[-1])
        embedding = f"{prefix}patch_embeds.{stage}"
        with graph.scope(embedding):
            x = _patch_embedding(graph, x, embedding, patch, dialect)
        for index in range(variant.depths[stage]):
            block = f"{prefix}blocks.{stage}.{index}"
            with graph.scope(block):
                x = _block(graph, x, block, stage, index, variant, dialect)
            if index == 0:
                position = f"{prefix}pos_block.{stage}"
                with graph.scope(position):
                    x = _position_encoding(graph, x, position)
        if normalizes_stages:
            norm = layer_norm(graph, x.value, f"{prefix}norm_list.{stage}", dialect.block_epsilon)
            x = replace(x, value=norm)
        stages.append(x)
    return stages


def _patch_embedding(graph: Graph, x: Map, name: str, patch: int, dialect: Dialect) -> Map:
    if dialect.patch_rounding == "ceil":
        bottom, right = -x.height % patch, -x.width % patch
        padded = pad_bottom_right(graph, x.value, bottom, right, axis=2)
        x = Map(padded, x.height + bottom, x.width + right)
    x = channels_last(graph, convolution(graph, x, f"{name}.proj", stride=patch))
    return replace(x, value=layer_norm(graph, x.value, f"{name}.norm", dialect.embed_epsilon))


def _position_encoding(graph: Graph, x: Map, name: str) -> Map:
    channels = len(graph.tensors[f"{name}.proj.0.bias"])
    first = channels_first(graph, x)
    encoded = convolution(graph, first, f"{name}.proj.0", padding=1, groups=channels)
    return replace(x, value=graph.add("Add", channels_last(graph, encoded).value, x.value))


def _block(
    graph: Graph, x: Map, name: str, stage: int, index: int, variant: Variant, dialect: Dialect
) -> Map:
    heads = variant.num_heads[stage]
    normed = replace(x, value=layer_norm(graph, x.value, f"{name}.norm1", dialect.block_epsilon))
    if variant.family == "svt" and index % 2 == 0:
        branch = _local_attention(graph, normed, f"{name}.attn", heads, dialect.window_padding)
    else:
        ratio = variant.sr_ratios[stage]
        branch = _global_attention(graph, normed, f"{name}.attn", heads, ratio, dialect)
    value = graph.add("Add", x.value, branch)
    hidden = layer_norm(graph, value, f"{name}.norm2", dialect.block_epsilon)
    hidden = gelu(graph, linear(graph, hidden, f"{name}.mlp.fc1"))
    return replace(x, value=graph.add("Add", value, linear(graph, hidden, f"{name}.mlp.fc2")))


def _global_attention(
    graph: Graph, x: Map, name: str, heads: int, ratio: int, dialect: Dialect
) -> str:
    summary = x.value
    if ratio > 1:
        epsilon = dialect.embed_epsilon if dialect.sr_epsilon is None else dialect.sr_epsilon
        sampled = convolution(graph, channels_first(graph, x), f"{name}.sr", stride=ratio)
        summary = channels_last(graph, sampled).value
        summary = layer_norm(graph, summary, f"{name}.norm", epsilon)
    channels = len(graph.tensors[f"{name}.q.bias"])
    query = linear(graph, x.value, f"{name}.q")
    key, value = _split(graph, linear(graph, summary, f"{name}.kv"), channels, 2)
    out = _attend(graph, query, key, value, heads, channels)
    out = graph.add("Reshape", out, graph.shape(0, x.height, x.width, channels))
    return linear(graph, out, f"{name}.proj")


def _local_attention(graph: Graph, x: Map, name: str, heads: int, padding: str) -> str:
    channels = len(graph.tensors[f"{name}.proj.bias"])
    bottom, right = Length(graph, 0), Length(graph, 0)
    if padding != "none":
        bottom, right = -x.height % WINDOW, -x.width % WINDOW
    rows, columns = (x.height + bottom) // WINDOW, (x.width + right) // WINDOW
    # Without padding this fails for a map that is no multiple of the window, as it has to.
    cut = graph.shape(0, rows, WINDOW, columns, WINDOW, channels)
    windows = graph.add("Reshape", pad_bottom_right(graph, x.value, bottom, right, axis=1), cut)
    windows = graph.add("Transpose", windows, perm=[0, 1, 3, 2, 4, 5])
    windows = graph.add("Reshape", windows, graph.constant([-1, WINDOW**2, channels]))
    query, key, value = _split(graph, linear(graph, windows, f"{name}.qkv"), channels, 3)
    mask = None
    if padding == "mask" and not (bottom.is_zero or right.is_zero):
        mask = _padding_mask(graph, rows, columns, bottom, right)
    out = _attend(graph, query, key, value, heads, channels, mask, rows * columns)
    out = graph.add("Reshape", out, graph.shape(-1, rows, columns, WINDOW, WINDOW, channels))
    out = graph.add("Transpose", out, perm=[0, 1, 3, 2, 4, 5])
    out = graph.add("Reshape", out, graph.shape(0, rows * WINDOW, columns * WINDOW, channels))
    return linear(graph, crop_top_left(graph, out, x, bottom, right), f"{name}.proj")


def _split(graph: Graph, x: str, channels: int, count: int) -> tuple[str, ...]:
    return graph.add_many(count, "Split", x, graph.constant([channels] * count), axis=-1)


def _attend(
    graph: Graph,
    query: str,
    key: str,
    value: str,
    heads: int,
    channels: int,
    mask: str | None = None,
    windows: Length | int = 1,
) -> str:
    """softmax(q k^T / sqrt(d) + mask) v, of tokens (N, ..., C) -> (N, T, C).

    With a mask (1, windows, 1, T, T), N is images times windows, which vary faster.
    """
    size = channels // heads
    scale = graph.constant(size**-0.5, np.float32)
    split = graph.constant([0, -1, heads, size])

    def of_heads(x: str, perm: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", x, split), perm=perm)

    scaled = graph.add("Mul", of_heads(query, [0, 2, 1, 3]), scale)
    scores = graph.add("MatMul", scaled, of_heads(key, [0, 2, 3, 1]))
    if mask is not None:
        tokens = WINDOW**2
        scores = graph.add("Reshape", scores, graph.shape(-1, windows, heads, tokens, tokens))
        scores = graph.add("Add", scores, mask)
        scores = graph.add("Reshape", scores, graph.constant([-1, heads, tokens, tokens]))
    out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), of_heads(value, [0, 2, 1, 3]))
    out = graph.add("Transpose", out, perm=[0, 2, 1, 3])
    return graph.add("Reshape", out, graph.constant([0, -1, channels]))


def _padding_mask(
    graph: Graph, rows: Length, columns: Length, bottom: Length, right: Length
) -> str:
    """Scores (1, windows, 1, 49, 49) that keep real and padded tokens apart.

    With the quirk of `mindtwins.models.twins.padding_mask`: where an axis has no padding, all of
    it counts as padded.
    """
    down = _padded(graph, rows * WINDOW, bottom)
    across = _padded(graph, columns * WINDOW, right)
    padded = graph.add(
        "Or",
        graph.add("Unsqueeze", down, graph.constant([1])),
        graph.add("Unsqueeze", across, graph.constant([0])),
    )
    padded = graph.add("Cast", padded, to="float32")
    windows = graph.add("Reshape", padded, graph.shape(rows, WINDOW, columns, WINDOW))
    windows = graph.add("Transpose", windows, perm=[0, 2, 1, 3])
    one_way = graph.add("Reshape", windows, graph.constant([1, -1, 1, WINDOW**2, 1]))
    other_way = graph.add("Reshape", windows, graph.constant([1, -1, 1, 1, WINDOW**2]))
    differ = graph.add("Abs", graph.add("Sub", one_way, other_way))
    return graph.add("Mul", differ, graph.constant(-1000, np.float32))


def _padded(graph: Graph, length: Length, pad: Length) -> str:
    """Which of an axis' places count as padding: the last `pad`, or all where that is 0."""
    first = length - pad
    places = positions(graph, length)
    real = graph.add("Less", places, first.name)
    has_padding = graph.add("Less", graph.constant([0]), pad.name)
    return graph.add("Not", graph.add("And", real, has_padding))
