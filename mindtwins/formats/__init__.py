"""Checkpoint file formats: bytes in, named NumPy arrays out, and back."""

from __future__ import annotations

import math

import numpy as np

# NumPy has no bfloat16. An array of this dtype holds its bits, the upper half of a float32's.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


class FormatError(Exception):
    """The bytes are not a sound file of this format; the message is the reason, without a path."""


def require(condition: bool, reason: str) -> None:
    """Raise a FormatError with this reason unless the condition holds."""
    if not condition:
        raise FormatError(reason)


def view_as_array(
    name: str, content: bytes | memoryview, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """A read-only array over `content`, which has to have exactly the shape's size."""
    size = math.prod(shape) * dtype.itemsize
    require(len(content) == size, f"the size of {name} in it does not fit its shape")
    try:
        return np.frombuffer(content, dtype).reshape(shape)
    except (ValueError, OverflowError) as error:  # dimensions beyond NumPy's, beside a 0
        raise FormatError(f"{name} in it has an impossible shape") from error


def raw_bytes(array: np.ndarray) -> memoryview:
    """An array's elements in order, without a copy where they lie so in memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
