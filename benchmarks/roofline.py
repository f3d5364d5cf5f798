"""How fast a model could be: operations and bytes of each operator, and the peaks of the device.

An operator takes at least as long as its arithmetic at the peak of the unit that does it, and at
least as long as moving its inputs and outputs once through the card's memory. The floor of a model
is the sum over its operators of the larger of the two. Bias, GELU and the addition of the residual
are taken to be part of the product before them, and the scores of attention to never leave the
chip: what a fused implementation moves, not what this one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.inputs import Work, is_detector, is_segmentor
from mindtwins.models.twins import PATCH_SIZES, WINDOW
from mindtwins.models.variants import VARIANTS, resolve_name


class Operator(NamedTuple):
    """One operator's multiply-adds, and the numbers that it reads and writes."""

    products: int
    values: int


class Peaks(NamedTuple):
    """Dense operations per second in each precision, and bytes of memory per second."""

    fp32: float
    tf32: float
    fp16: float
    memory: float


# From NVIDIA's data sheets, by what the driver calls the card: the first that its name ("NVIDIA
# H200") contains. The sheets of Hopper cards state the tensor cores' rates with sparsity, twice
# those here. A V100 has no TF32.
PEAKS = {
    " H200 NVL": Peaks(60e12, 417.5e12, 835.5e12, 4.8e12),
    " H200": Peaks(67e12, 494.5e12, 989.5e12, 4.8e12),
    " H100 PCIe": Peaks(51e12, 378e12, 756.5e12, 2.0e12),
    " H100 NVL": Peaks(60e12, 417.5e12, 835.5e12, 3.9e12),
    " H100": Peaks(67e12, 494.5e12, 989.5e12, 3.35e12),
    "A100-SXM4-80GB": Peaks(19.5e12, 156e12, 312e12, 2.039e12),
    "A100-SXM4-40GB": Peaks(19.5e12, 156e12, 312e12, 1.555e12),
    "V100-SXM2": Peaks(15.7e12, 15.7e12, 125e12, 0.9e12),
}
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2}


def find_floor(work: Work, card: str) -> float | None:
    """The least seconds for a classifier's inference; None for other work or an unknown card."""
    peaks = find_peaks(card)
    if peaks is None or not _is_counted(work):
        return None
    return floor_seconds(count_operators(work.model, work.size, work.batch), peaks, work.precision)


def processor_floor(work: Work, rate: float | None) -> float | None:
    """The same for all cores together at so many operations per second; memory is left out."""
    if rate is None or not _is_counted(work):
        return None
    operators = count_operators(work.model, work.size, work.batch)
    return 2 * sum(operator.products for operator in operators) / rate


def _is_counted(work: Work) -> bool:
    has_head = is_segmentor(work.model) or is_detector(work.model)
    return work.what == "inference" and not has_head


def find_peaks(card: str) -> Peaks | None:
    """The data sheet of a card by its name; None for one that is not in the table."""
    return next((peaks for name, peaks in PEAKS.items() if name in card), None)


def floor_seconds(operators: Iterable[Operator], peaks: Peaks, precision: str) -> float:
    """The least time for the operators, one after the other."""
    rate, size = getattr(peaks, precision), BYTES[precision]
    return sum(max(2 * o.products / rate, o.values * size / peaks.memory) for o in operators)


def count_operators(name: str, size: int, batch: int, classes: int = 1000) -> Iterator[Operator]:
    """The operators of a classifier on a batch of square images, weights read once per batch."""
    variant = VARIANTS[resolve_name(name)]
    channels, side = 3, size

    def operator(products: int, activations: int, weights: int) -> Operator:
        return Operator(batch * products, batch * activations + weights)

    def product(rows: int, inputs: int, outputs: int, residual: int = 0) -> Operator:
        moved = rows * (inputs + outputs + residual)
        return operator(rows * inputs * outputs, moved, inputs * outputs + outputs)

    def norm(rows: int) -> Operator:
        return operator(0, 2 * rows * dim, 2 * dim)

    for stage, patch in enumerate(PATCH_SIZES):
        dim, sr = variant.embed_dims[stage], variant.sr_ratios[stage]
        side //= patch
        tokens, summary = side * side, (side // sr) ** 2
        windowed = (math.ceil(side / WINDOW) * WINDOW) ** 2
        hidden = dim * variant.mlp_ratios[stage]
        yield product(tokens, patch * patch * channels, dim)
        yield norm(tokens)
        for index in range(variant.depths[stage]):
            yield norm(tokens)
            if variant.family == "svt" and index % 2 == 0:
                yield product(windowed, dim, 3 * dim)
                yield operator(2 * windowed * WINDOW**2 * dim, 4 * windowed * dim, 0)
            else:
                yield product(tokens, dim, dim)
                if sr > 1:
                    yield product(summary, sr * sr * dim, dim)
                    yield norm(summary)
                yield product(summary, dim, 2 * dim)
                yield operator(2 * tokens * summary * dim, 2 * (tokens + summary) * dim, 0)
            yield product(tokens, dim, dim, residual=dim)
            yield norm(tokens)
            yield product(tokens, dim, hidden)
            yield product(tokens, hidden, dim, residual=dim)
            if index == 0:
                yield operator(9 * tokens * dim, 2 * tokens * dim, 10 * dim)  # positions
        channels = dim
    yield norm(tokens)
    yield product(1, dim, classes)
