"""Which formulation of an operation runs on which device: the one place that asks.

MindSpore's kernels differ enormously between devices. Its CPU convolution falls back to oneDNN's
reference code since 2.9 (a 4x4 convolution of stride 4 takes hundreds of times longer than the
same matrix product), while GPU and Ascend have native convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms

# "native": MindSpore's own operator of that name. "matmul": slices, products and matrix products.
_FORMULATION_OF_DEVICE = {"CPU": "matmul", "GPU": "native", "Ascend": "native"}
_forced: str | None = None


def formulation() -> str:
    """Name of the formulation that layers built now will use: "native" or "matmul"."""
    return _forced or _FORMULATION_OF_DEVICE[ms.get_current_device().device_target]


@contextmanager
def use_formulation(name: str) -> Iterator[None]:
    """Build layers with the named formulation whatever the device, to compare formulations.

    Raises:
        ValueError: for a name that is not a formulation.
    """
    global _forced
    if name not in _FORMULATION_OF_DEVICE.values():
        raise ValueError(f"unknown formulation {name!r}: use 'native' or 'matmul'")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
