"""Calls C++ operators through ctypes, on arrays that end where the process may not read.

A program of its own (`python operator_calls.py LIBRARY CALLS`): a read or write beyond an array
kills it. CALLS is an .npz file: of call `i` the inputs `i.NAME.0`, `i.NAME.1` and so on, and the
shapes of the outputs, `i.NAME.shapes`. It needs neither MindSpore nor the package, so that a
sanitizer may watch it.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from product_checks import call, guarded


def check(library: ctypes.CDLL, name: str, inputs: list[np.ndarray], shapes: list) -> None:
    """Every number of the outputs is written, and the same on 1, 2 and 3 threads."""
    arrays = [guarded(array.shape, array.dtype.type) for array in inputs]
    for guard, array in zip(arrays, inputs, strict=True):
        guard[...] = array
    results = []
    for threads in (1, 2, 3):
        library.mindtwins_set_threads(threads)
        results.append(call(getattr(library, name), arrays, *shapes))
    is_empty = not all(array.size for array in arrays)  # a mean of nothing is no number
    for outputs in results:
        for output, first in zip(outputs, results[0], strict=True):
            assert is_empty or np.isfinite(output).all(), f"{name}: not written, or not finite"
            np.testing.assert_array_equal(output, first, name)
    for guard, array in zip(arrays, inputs, strict=True):
        np.testing.assert_array_equal(guard, array, f"{name} wrote to an input")


def main(path: str, calls: str) -> None:
    library = ctypes.CDLL(path)
    with np.load(calls) as file:
        arrays = dict(file)
    for key in [key for key in arrays if key.endswith(".shapes")]:
        start = key.removesuffix("shapes")
        count = sum(name.startswith(start) for name in arrays) - 1
        inputs = [arrays[f"{start}{number}"] for number in range(count)]
        # Rows of one length: -1 is none.
        shapes = [tuple(side for side in shape if side >= 0) for shape in arrays[key].tolist()]
        check(library, start.split(".")[1], inputs, shapes)


if __name__ == "__main__":
    main(*sys.argv[1:])
