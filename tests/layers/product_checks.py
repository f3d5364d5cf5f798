"""Calls the C++ products and what is made of them, on arrays that end where none may read.

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


def guarded(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """An array of 4-byte numbers between pages that must not be touched, at the end of its own.

    Floating-point numbers are NaN.
    """
    size = 4 * int(np.prod(shape))
    pages = max(1, (size + PAGE - 1) // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if LIBC.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    array = np.frombuffer(memory, dtype, size // 4, (pages + 1) * PAGE - size).reshape(shape)
    array[...] = np.nan if dtype is np.float32 else 0
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
        (ctypes.c_char_p * count)(*(array.dtype.name.encode() for array in arrays)),
        None,
        None,
    )
    assert status == 0
    return outputs


def exact(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def assert_close(actual: np.ndarray, expected: np.ndarray, depth: int) -> None:
    """Within float32's rounding of sums of `depth` products, of any order."""
    error = np.abs(actual - expected).max()
    assert error <= 4e-7 * (1 + np.sqrt(depth)) * max(1, np.abs(expected).max()), error


def check_dense(library, rng, rows: int, depth: int, columns: int) -> None:
    x, weight, bias = filled(rng, rows, depth), filled(rng, columns, depth), filled(rng, columns)
    dout = filled(rng, rows, columns)
    results = []
    for threads in (1, 2, 3):
        library.mindtwins_set_threads(threads)
        results.append(
            call(library.dense, [x, weight, bias], (rows, columns))
            + call(library.dense_gradient, [dout, x, weight], x.shape, weight.shape, (columns,))
            + call(library.weight_gradient, [dout, x, weight], weight.shape, (columns,))
        )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    out, grad_x, grad_weight, grad_bias, *the_same = results[0]
    for one, two in zip((grad_weight, grad_bias), the_same, strict=True):
        np.testing.assert_array_equal(one, two)
    x64, weight64, bias64, dout64 = exact([x, weight, bias, dout])
    assert_close(out, x64 @ weight64.T + bias64, depth)
    assert_close(grad_x, dout64 @ weight64, columns)
    assert_close(grad_weight, dout64.T @ x64, rows)
    assert_close(grad_bias, dout64.sum(0), rows)


def on_threads(library, operator, inputs: list[np.ndarray], *shapes) -> list[np.ndarray]:
    """The outputs, of these shapes, which must have the same bits on 1, 2 and 3 threads."""
    results = []
    for threads in (1, 2, 3):
        library.mindtwins_set_threads(threads)
        results.append(call(operator, inputs, *shapes))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    return results[0]


def norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gamma + beta


def layer(rng, outputs: int, *inputs: int) -> list[np.ndarray]:
    """Weight and bias of a linear layer or convolution, outputs about as large as inputs."""
    weight = filled(rng, outputs, *inputs)
    weight /= np.sqrt(math.prod(inputs))
    return [weight, filled(rng, outputs)]


def number(value: float) -> np.ndarray:
    array = guarded((1,))
    array[...] = value
    return array


def check_mlp(library, rng, rows: int, channels: int, hidden: int) -> None:
    x, gamma, beta = filled(rng, rows, channels), filled(rng, channels), filled(rng, channels)
    first, second = layer(rng, hidden, channels), layer(rng, channels, hidden)
    inputs = [x, gamma, beta, *first, *second, number(1e-3)]
    (result,) = on_threads(library, library.mlp, inputs, x.shape)
    x, gamma, beta, weight1, bias1, weight2, bias2, epsilon = exact(inputs)
    before = norm(x, gamma, beta, epsilon) @ weight1.T + bias1
    branch = before * normal_distribution(before) @ weight2.T + bias2
    assert_close(result, x + branch, hidden)


def check_mlp_training(library, rng, images: int, tokens: int, channels: int, hidden: int) -> None:
    """What is kept and made for the gradient; that MindSpore adds it up, others see to."""
    x, gamma, beta = (
        filled(rng, images, tokens, channels),
        filled(rng, channels),
        filled(rng, channels),
    )
    first, second = layer(rng, hidden, channels), layer(rng, channels, hidden)
    factors, epsilon, dout = filled(rng, images), number(1e-3), filled(rng, *x.shape)
    wide = (images, tokens, hidden)
    inputs = [x, gamma, beta, *first, *second, factors, epsilon]
    result, before = on_threads(library, library.mlp_training, inputs, x.shape, wide)
    numbers = [dout, x, filled(rng, *wide), gamma, beta, first[0], second[0], factors, epsilon]
    numbers[2][...] = before
    gradients = on_threads(
        library, library.mlp_gradient, numbers, wide, x.shape, x.shape, wide, x.shape
    )
    x, gamma, beta, weight1, bias1, weight2, bias2, factors, epsilon = exact(inputs)
    normal = norm(x, gamma, beta, epsilon)
    before64 = normal @ weight1.T + bias1
    after = before64 * normal_distribution(before64)
    assert_close(before, before64, channels)
    scale = factors[:, None, None]
    assert_close(result, x + scale * (after @ weight2.T + bias2), hidden)
    grad_branch = dout.astype(np.float64) * scale
    density = np.exp(-(before64**2) / 2) / np.sqrt(2 * np.pi)
    slope = normal_distribution(before64) + before64 * density
    grad_before = grad_branch @ weight2 * slope
    expected = (after, normal, grad_branch, grad_before, grad_before @ weight1)
    for actual, numbers64 in zip(gradients, expected, strict=True):
        assert_close(actual, numbers64, hidden + channels)


def normal_distribution(x: np.ndarray) -> np.ndarray:
    return (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2))) / 2


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, mask=0) -> np.ndarray:
    """Attention of tokens (N, C) to tokens (M, C); mask (N, M)."""
    parts = []
    for query, key, value in zip(*(np.split(array, heads, 1) for array in (q, k, v)), strict=True):
        scores = query @ key.T / np.sqrt(query.shape[1]) + mask
        weights = np.exp(scores - scores.max(1, keepdims=True))
        parts.append(weights / weights.sum(1, keepdims=True) @ value)
    return np.concatenate(parts, 1)


def check_window_branch(library, rng, shape, heads: int, side: int, masked: bool) -> None:
    batch, height, width, channels = shape
    rows, columns = -(-height // side), -(-width // side)
    mask = filled(rng, 1, rows * columns, 1, side**2, side**2) if masked else number(0)
    norms = [filled(rng, channels), filled(rng, channels)]
    layers = [*layer(rng, 3 * channels, channels), *layer(rng, channels, channels)]
    sizes = np.array([heads, side], np.int32)
    inputs = [filled(rng, *shape), *norms, *layers, mask, sizes, guarded((side, side)), number(0.1)]
    (result,) = on_threads(library, library.window_branch, inputs, shape)
    x, gamma, beta, weight1, bias1, weight2, bias2, masks, _, _, epsilon = exact(inputs)
    normal = np.zeros((batch, rows * side, columns * side, channels))
    normal[:, :height, :width] = norm(x, gamma, beta, epsilon)
    out = np.zeros_like(normal)
    for image, row, column in itertools.product(range(batch), range(rows), range(columns)):
        window = (
            image,
            slice(row * side, (row + 1) * side),
            slice(column * side, (column + 1) * side),
        )
        qkv = normal[window].reshape(-1, channels) @ weight1.T + bias1
        own = masks[0, row * columns + column, 0] if masked else 0
        attended = attend(*np.split(qkv, 3, 1), heads, own)
        out[window] = (attended @ weight2.T + bias2).reshape(side, side, channels)
    assert_close(result, x + out[:, :height, :width], channels)


def check_global_branch(library, rng, shape, heads: int, side: int) -> None:
    """Sub-sampled by patches of side x side, 0 for attention to all tokens."""
    batch, height, width, channels = shape
    norms = [filled(rng, channels), filled(rng, channels)]
    layers = layer(rng, channels, channels) + layer(rng, 2 * channels, channels)
    layers += layer(rng, channels, channels)
    inputs = [filled(rng, *shape), *norms, *layers]
    epsilons = [number(0.1)]
    if side:
        inputs += layer(rng, channels, channels, side, side)
        inputs += [filled(rng, channels), filled(rng, channels)]
        epsilons.append(number(0.2))
    inputs += [np.array([heads], np.int32), *epsilons]
    operator = library.subsampled_branch if side else library.global_branch
    (result,) = on_threads(library, operator, inputs, shape)
    x, gamma, beta, weight1, bias1, weight2, bias2, weight3, bias3, *rest = exact(inputs)
    normal = summary = norm(x, gamma, beta, epsilons[0])
    if side:
        rows, columns = height // side, width // side
        patches = normal[:, : rows * side, : columns * side]
        patches = patches.reshape(batch, rows, side, columns, side, channels)
        summary = np.einsum("bhiwjc,ocij->bhwo", patches, rest[0]) + rest[1]
        summary = norm(summary, rest[2], rest[3], epsilons[1])
    out = []
    for image, context in zip(normal, summary, strict=True):
        q = image.reshape(-1, channels) @ weight1.T + bias1
        kv = context.reshape(-1, channels) @ weight2.T + bias2
        attended = attend(q, *np.split(kv, 2, 1), heads)
        out.append((attended @ weight3.T + bias3).reshape(image.shape))
    assert_close(result, x + np.array(out), channels * max(1, side) ** 2)


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
        (library.conv3x3, [(0, 4, 4, 8), (5, 8, 3, 3)], (0, 4, 4, 5)),
    ):
        call(operator, [filled(rng, *shape) for shape in inputs], out)  # no row at all
    for sizes in ((1, 1, 1), (49, 20, 70), (13, 33, 9), (257, 20, 70), (400, 33, 97)):
        check_mlp(library, rng, *sizes)
    for sizes in ((1, 1, 1, 1), (3, 17, 20, 70), (1, 49, 33, 9), (2, 113, 8, 40), (5, 81, 33, 97)):
        check_mlp_training(library, rng, *sizes)
    # Few tokens and many, whole windows and padded ones, all groups of images and a part of one.
    for shape, *rest in (
        ((1, 1, 1, 1), 1, 1, False),
        ((1, 7, 7, 40), 2, 7, False),
        ((3, 9, 13, 33), 3, 5, True),
        ((5, 10, 6, 12), 2, 3, True),
        ((2, 15, 14, 64), 1, 7, False),
    ):
        check_window_branch(library, rng, shape, *rest)
    for shape, *rest in (
        ((1, 1, 1, 1), 1, 0),
        ((2, 7, 7, 40), 2, 0),
        ((3, 9, 17, 33), 3, 0),
        ((1, 2, 2, 24), 3, 2),
        ((4, 8, 8, 16), 2, 4),
        ((5, 12, 8, 40), 1, 4),
        ((2, 33, 26, 10), 2, 3),
        ((5, 32, 32, 8), 1, 8),
    ):
        check_global_branch(library, rng, shape, *rest)


if __name__ == "__main__":
    main(sys.argv[1])
