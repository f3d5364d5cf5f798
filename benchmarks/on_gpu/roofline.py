"""How fast a model could be on a card: operations and bytes of each operator, and the card's peaks.

An operator takes at least as long as its arithmetic at the peak of the unit that does it, and at
least as long as moving its inputs and outputs once through the card's memory. The floor of a model
is the sum over its operators of the larger of the two. Bias, GELU and the addition of the residual
are taken to be part of the product before them, and the scores of attention to never leave the
chip: what a fused implementation moves, not what this one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mindtwins.models.twins import PATCH_SIZES, WINDOW
from mindtwins.models.variants import VARIANTS, resolve_name


class Operator(NamedTuple):
    """One operator's work on a batch.

    Attributes:
        name: what it is.
        products: multiply-adds.
        values: numbers read and written.
    """

    name: str
    products: int
    values: int


class Peaks(NamedTuple):
    """A card's data sheet.

    Attributes:
        fp32: operations per second of the ordinary float32 units.
        tf32: of the tensor cores on TF32, dense; 0 without.
        fp16: of the tensor cores on float16, dense.
        bandwidth: bytes per second of the memory.
        source: where that stands.
    """

    fp32: float
    tf32: float
    fp16: float
    bandwidth: float
    source: str


# By what the driver calls the card, the first that its name ("NVIDIA H200") contains. The sheets of
# Hopper cards state the tensor cores' rates with sparsity, twice those here.
PEAKS = {
    " H200 NVL": Peaks(60e12, 417.5e12, 835.5e12, 4.8e12, "NVIDIA H200 data sheet (NVL)"),
    " H200": Peaks(67e12, 494.5e12, 989.5e12, 4.8e12, "NVIDIA H200 data sheet (SXM)"),
    " H100 PCIe": Peaks(51e12, 378e12, 756.5e12, 2.0e12, "NVIDIA H100 data sheet (PCIe)"),
    " H100 NVL": Peaks(60e12, 417.5e12, 835.5e12, 3.9e12, "NVIDIA H100 data sheet (NVL)"),
    " H100": Peaks(67e12, 494.5e12, 989.5e12, 3.35e12, "NVIDIA H100 data sheet (SXM)"),
    "A100-SXM4-80GB": Peaks(19.5e12, 156e12, 312e12, 2.039e12, "NVIDIA A100 data sheet"),
    "A100-SXM4-40GB": Peaks(19.5e12, 156e12, 312e12, 1.555e12, "NVIDIA A100 data sheet"),
    "V100-SXM2": Peaks(15.7e12, 0, 125e12, 0.9e12, "NVIDIA V100 data sheet"),
}
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2}


def find_peaks(card: str) -> Peaks | None:
    """The data sheet of a card by its name; None for one that is not in the table."""
    return next((peaks for name, peaks in PEAKS.items() if name in card), None)


def floor_seconds(operators: list[Operator], peaks: Peaks, precision: str) -> float:
    """The least time for the operators, one after the other, in "fp32", "tf32" or "fp16"."""
    rate = getattr(peaks, precision)
    if rate == 0:
        raise ValueError(f"the card has no {precision}")
    width = BYTES[precision]
    return sum(max(2 * o.products / rate, o.values * width / peaks.bandwidth) for o in operators)


def count_operators(
    name: str, image_size: int, batch: int, num_classes: int = 1000
) -> list[Operator]:
    """The operators of a classifier on a batch of square images, weights read once per batch."""
    return [
        Operator(label, batch * products, batch * values + weights)
        for label, products, values, weights in _per_image(name, image_size, num_classes)
    ]


def _per_image(name: str, size: int, classes: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, multiply-adds, activations moved, weights) of each operator on one image."""
    variant = VARIANTS[resolve_name(name)]
    channels, side = 3, size

    def product(label: str, rows: int, inputs: int, outputs: int, adds_residual: bool = False):
        moved = rows * (inputs + outputs * (2 if adds_residual else 1))
        return label, rows * inputs * outputs, moved, inputs * outputs + outputs

    def norm(rows: int):
        return "norm", 0, 2 * rows * dim, 2 * dim

    for stage, patch in enumerate(PATCH_SIZES):
        dim, sr = variant.embed_dims[stage], variant.sr_ratios[stage]
        side //= patch
        tokens, summary = side * side, (side // sr) ** 2
        windowed = (math.ceil(side / WINDOW) * WINDOW) ** 2
        hidden = dim * variant.mlp_ratios[stage]
        yield product("patches", tokens, patch * patch * channels, dim)
        yield norm(tokens)
        for index in range(variant.depths[stage]):
            yield norm(tokens)
            if variant.family == "svt" and index % 2 == 0:
                yield product("qkv", windowed, dim, 3 * dim)
                yield "attention", 2 * windowed * WINDOW * WINDOW * dim, 4 * windowed * dim, 0
            else:
                yield product("q", tokens, dim, dim)
                if sr > 1:
                    yield product("sub-sampling", summary, sr * sr * dim, dim)
                    yield norm(summary)
                yield product("kv", summary, dim, 2 * dim)
                yield "attention", 2 * tokens * summary * dim, 2 * (tokens + summary) * dim, 0
            yield product("projection", tokens, dim, dim, adds_residual=True)
            yield norm(tokens)
            yield product("mlp 1", tokens, dim, hidden)
            yield product("mlp 2", tokens, hidden, dim, adds_residual=True)
            if index == 0:
                yield "position encoding", 9 * tokens * dim, 2 * tokens * dim, 10 * dim
        channels = dim
    yield norm(tokens)
    yield product("head", 1, dim, classes)
