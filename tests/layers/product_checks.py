"""Calls the C++ products through ctypes, on arrays that end where the process may not read.

A program of its own (`python product_checks.py LIBRARY`): a read or write beyond an array kills it.
It needs neither MindSpore nor the package.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import sys

import numpy as np

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE


def guarded(shape: tuple[int, ...]) -> np.ndarray:
    """An array (float32, NaN) between pages that must not be touched, at the end of its own."""
    size = 4 * int(np.prod(shape))
    pages = max(1, (size + PAGE - 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if LIBC.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    array = np.frombuffer(memory, np.float32, size // 4, (pages + 1) * PAGE - size).reshape(shape)
    array[...] = np.nan
    return array


def filled(rng: np.random.Generator, *shape: int) -> np.ndarray:
    array = guarded(shape)
    array[...] = rng.standard_normal(shape)
    return array


def call(function, inputs: list[np.ndarray], *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """The outputs, of these shapes, of an operator of the library."""
    outputs = [guarded(shape) for shape in shapes]
    arrays = [*inputs, *outputs]
    count = len(arrays)
    sizes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    status = function(
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (ctypes.c_void_p * count)(*(ctypes.addressof(size) for size in sizes)),
        (ctypes.c_char_p * count)(*[b"float32"] * count),
        None,
        None,
    )
    assert status == 0
    return outputs


def assert_close(actual: np.ndarray, expected: np.ndarray, depth: int) -> None:
    """Within float32's rounding of sums of `depth` products, of any order."""
    error = np.abs(actual - expected).max()
    assert error <= 4e-7 * (1 + np.sqrt(depth)) * max(1, np.abs(expected).max()), error


def check_dense(library, rng, rows: int, depth: int, columns: int) -> None:
    x, weight, bias = filled(rng, rows, depth), filled(rng, columns, depth), filled(rng, columns)
    dout = filled(rng, rows, columns)
    exact = [array.astype(np.float64) for array in (x, weight, bias, dout)]
    results = []
    for threads in (1, 2, 3):
        library.mindtwins_set_threads(threads)
        results.append(
            call(library.dense, [x, weight, bias], (rows, columns))
            + call(library.dense_gradient, [dout, x, weight], x.shape, weight.shape, (columns,))
        )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    out, grad_x, grad_weight, grad_bias = results[0]
    x64, weight64, bias64, dout64 = exact
    assert_close(out, x64 @ weight64.T + bias64, depth)
    assert_close(grad_x, dout64 @ weight64, columns)
    assert_close(grad_weight, dout64.T @ x64, rows)
    assert_close(grad_bias, dout64.sum(0), rows)


def check_mlp(library, rng, rows: int, channels: int, hidden: int) -> None:
    shapes = ((rows, channels), (channels,), (channels,), (hidden, channels), (hidden,))
    inputs = [filled(rng, *shape) for shape in (*shapes, (channels, hidden), (channels,), (1,))]
    for weight in inputs[3], inputs[5]:
        weight /= np.sqrt(weight.shape[1])
    inputs[7][...] = 1e-3
    results = []
    for threads in (1, 2, 3):
        library.mindtwins_set_threads(threads)
        results += call(library.mlp, inputs, (rows, channels))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    x, gamma, beta, weight1, bias1, weight2, bias2, epsilon = (
        array.astype(np.float64) for array in inputs
    )
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + epsilon)
    hidden_numbers = (normal * gamma + beta) @ weight1.T + bias1
    hidden_numbers *= (1 + np.vectorize(math.erf)(hidden_numbers / np.sqrt(2))) / 2
    assert_close(results[0], x + hidden_numbers @ weight2.T + bias2, hidden)


def main(path: str) -> None:
    library = ctypes.CDLL(path)
    rng = np.random.default_rng(0)
    # Around the sizes of tiles, panels, blocks and parts, for vectors of 8 and of 16.
    for sizes in itertools.product((1, 6, 15, 97), (1, 7, 33, 97), (1, 9, 31, 64)):
        check_dense(library, rng, *sizes)
    for sizes in ((256, 20, 130), (257, 20, 130), (700, 97, 33), (300, 513, 17), (2100, 3, 5)):
        check_dense(library, rng, *sizes)
    for rows in (9, 260):
        check_dense(library, rng, rows, 3100, 20)  # in two parts
    for operator, inputs, out in (
        (library.dense, [(0, 8), (5, 8), (5,)], (0, 5)),
        (library.mlp, [(0, 8), (8,), (8,), (9, 8), (9,), (8, 9), (8,), (1,)], (0, 8)),
    ):
        call(operator, [filled(rng, *shape) for shape in inputs], out)  # no row at all
    for sizes in ((1, 1, 1), (49, 20, 70), (13, 33, 9), (257, 20, 70), (400, 33, 97)):
        check_mlp(library, rng, *sizes)


if __name__ == "__main__":
    main(sys.argv[1])
