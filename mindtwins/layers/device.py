"""Which formulation of an operation runs on which device: the one place that asks.

MindSpore's kernels differ enormously between devices. Its CPU convolution falls back to oneDNN's
reference code since 2.9 (a 4x4 convolution of stride 4 takes hundreds of times longer than the
same matrix product), while GPU and Ascend have native convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindtwins.layers import kernels

# "native": MindSpore's own operator of that name. "matmul": slices, products and matrix products.
# "kernel": the C++ kernels where there is one, else "matmul".
FORMULATIONS = ("native", "matmul", "kernel")
_forced: str | None = None


def formulation() -> str:
    """Name of the formulation that layers built now will use: one of `FORMULATIONS`."""
    if _forced is not None:
        return _forced
    if ms.get_current_device().device_target != "CPU":
        return "native"
    return "kernel" if kernels.available() else "matmul"


# The same for functions, which are not built: inside a graph, asked while it is compiled.
formulation_in_graph = ops.constexpr(formulation)


def use_kernel(x: Tensor, name: str | None = None) -> bool:
    """Whether a kernel computes with `x`: they are for float32 only. Inside a graph a constant.

    Args:
        x: what is computed with.
        name: the formulation of a layer, from when it was built; None for a function, which is not
            built: that of the moment.
    """
    if name is None:
        name = formulation_in_graph()
    return name == "kernel" and x.dtype == ms.float32


class decided_in_python:
    """A property of a cell that is a constant where a graph is compiled.

    Of a plain `property` MindSpore compiles the body, which may use little of Python.
    """

    def __init__(self, decide: Callable[[nn.Cell], bool]) -> None:
        self._decide = decide

    def __get__(self, cell: nn.Cell, owner: type) -> bool:
        return self._decide(cell)


@contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Build layers with the named formulation whatever the device, to compare formulations.

    Raises:
        ValueError: for a name that is not a formulation, or "kernel" where the kernels are not
            available.
    """
    global _forced
    if name not in FORMULATIONS:
        raise ValueError(f"unknown formulation {name!r}: use one of {', '.join(FORMULATIONS)}")
    if name == "kernel" and not kernels.available():
        raise ValueError(kernels.status())
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
