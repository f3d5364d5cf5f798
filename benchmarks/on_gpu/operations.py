"""Every operation of `mindtwins.layers` in each formulation that a device can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from benchmarks.on_gpu.timing import exclusive, median_seconds
from benchmarks.on_gpu.workers import emit
from mindtwins import layers
from mindtwins.layers.device import FORMULATIONS

# The C++ kernels of the third formulation are for the CPU.
DEVICE_FORMULATIONS = tuple(name for name in FORMULATIONS if name != "kernel")


class Case(NamedTuple):
    """One operation at one size.

    Attributes:
        label: its name and size.
        make: builds the cell.
        inputs: the shapes of its inputs.
        differs: whether the formulations compute differently.
    """

    label: str
    make: Callable[[], nn.Cell]
    inputs: tuple[tuple[int, ...], ...]
    differs: bool = True


class Resize(nn.Cell):
    """One of the functions on maps as a cell."""

    def __init__(self, function: Callable[..., Tensor], *arguments: int) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments

    def construct(self, x: Tensor) -> Tensor:
        return self.function(x, *self.arguments)


class Gradient(nn.Cell):
    """The gradients of a cell by its inputs and parameters, as one graph."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.parameters = ParameterTuple(cell.trainable_params())
        by_list = bool(self.parameters)
        self.gradient = ops.GradOperation(get_all=True, get_by_list=by_list, sens_param=True)

    def construct(self, sensitivity: Tensor, *inputs: Tensor) -> object:
        if self.parameters:
            return self.gradient(self.cell, self.parameters)(*inputs, sensitivity)
        return self.gradient(self.cell)(*inputs, sensitivity)


def wait() -> None:
    """Until the device is idle. Not on a CPU: there this is tried out, not measured."""
    if ms.get_current_device().device_target != "CPU":
        ms.runtime.synchronize()


def cases(batch: int, size: int) -> list[Case]:
    """SVT-S on square images of `size`, and its dense heads on maps of its first stage."""
    widths, sides = (64, 128, 256, 512), tuple(size // stride for stride in (4, 8, 16, 32))
    found = [Case(f"patches 4x4, 3 -> 64, {size}", _patches(3, 64, 4), ((batch, size, size, 3),))]
    for stage in (1, 2, 3):
        c, side = widths[stage - 1], sides[stage - 1]
        label = f"patches 2x2, {c} -> {2 * c}, {side}"
        found.append(Case(label, _patches(c, 2 * c, 2), ((batch, side, side, c),)))
    for c, side, ratio in zip(widths, sides, (8, 4, 2), strict=False):
        label = f"sub-sampling {ratio}x{ratio}, {c}, {side}"
        found.append(Case(label, _patches(c, c, ratio), ((batch, side, side, c),)))
    for c, side in zip(widths, sides, strict=True):
        make = _bind(layers.DepthwiseConv3x3, c)
        found.append(Case(f"depthwise 3x3, {c}, {side}", make, ((batch, side, side, c),)))
    c, side = widths[0], sides[0]
    window = -(-side // 7) * 7
    tokens, summary = (batch, side, side, c), (batch, side // 8, side // 8, 2 * c)
    few = max(1, batch // 8)
    heads = (few, side, side, 256)
    return [
        *found,
        Case(f"LayerNorm, {c}, {side}", _bind(layers.LayerNorm, c, 1e-6), (tokens,), False),
        Case(f"Dense {c} -> {4 * c}, {side}", _bind(layers.Dense, c, 4 * c), (tokens,), False),
        Case(f"the same, GELU, {side}", _bind(layers.DenseGELU, c, 4 * c), (tokens,), False),
        Case(
            f"window attention, 2 heads, {window}",
            _bind(layers.WindowAttention, 2, 7),
            ((batch, window, window, 3 * c),),
            False,
        ),
        Case(
            f"cross attention, 2 heads, {side}",
            _bind(layers.CrossAttention, 2),
            (tokens, summary),
            False,
        ),
        Case(f"3x3, 256 -> 256, {side}, batch {few}", _bind(layers.Conv3x3, 256, 256), (heads,)),
        Case(f"BatchNorm, 256, {side}, batch {few}", _bind(layers.BatchNorm, 256), (heads,), False),
        Case(
            f"bilinear {side} -> {2 * side}, 256, batch {few}",
            _bind(Resize, layers.resize_bilinear, 2 * side, 2 * side),
            (heads,),
        ),
        Case(
            f"nearest {side} -> {2 * side}, 256, batch {few}",
            _bind(Resize, layers.resize_nearest, 2 * side, 2 * side),
            (heads,),
        ),
        Case(
            f"pool {side} -> 6, 256, batch {few}",
            _bind(Resize, layers.adaptive_average_pool, 6),
            (heads,),
        ),
    ]


def _bind(make: Callable[..., nn.Cell], *arguments: object) -> Callable[[], nn.Cell]:
    return lambda: make(*arguments)


def _patches(inputs: int, outputs: int, kernel: int) -> Callable[[], nn.Cell]:
    return _bind(layers.PatchConv, inputs, outputs, kernel)


def measure(half: bool, batch: int, size: int, seconds: float, every: int, lock: str) -> None:
    """Report seconds of forward, and of forward with backward, for each case and formulation.

    Of the cases only each `every`th. `lock`: see `timing.exclusive`.
    """
    for case in cases(batch, size)[::every]:
        for formulation in DEVICE_FORMULATIONS if case.differs else DEVICE_FORMULATIONS[:1]:
            row = {"label": case.label, "formulation": formulation if case.differs else "only one"}
            try:
                with layers.use_formulation(formulation):
                    forward, both = _measure_one(case, half, seconds, lock)
                emit(**row, forward=forward, both=both)
            except Exception as error:
                emit(**row, problem=str(error).strip().partition("\n")[0][:120] or repr(error))


def _measure_one(case: Case, half: bool, seconds: float, lock: str) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    dtype = ms.float16 if half else ms.float32
    inputs = [
        ops.cast(Tensor(rng.standard_normal(shape, dtype=np.float32)), dtype) + Tensor(0, dtype)
        for shape in case.inputs
    ]
    cell = case.make()
    if half:
        cell.to_float(ms.float16)
    sensitivity, gradient = cell(*inputs), Gradient(cell)
    gradient(sensitivity, *inputs)  # to compile it
    with exclusive(lock):
        return (
            median_seconds(lambda: cell(*inputs), wait, seconds),
            median_seconds(lambda: gradient(sensitivity, *inputs), wait, seconds),
        )
