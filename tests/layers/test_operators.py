"""The kernels' table fits the C++ functions, and they give the plain formulations' numbers."""

import ctypes
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from layer_checks import tokens
from mindspore import Tensor, nn, ops

from mindtwins import layers
from mindtwins.layers import convolution, dense_convolution, kernels
from mindtwins.layers.activation import gelu_native
from mindtwins.layers.kernels import loading
from mindtwins.layers.resize import _neighbor_table

ROOT = Path(__file__).parents[2]

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=kernels.status())


def declared() -> dict[str, str]:
    """By the name of each C++ operator the types of its inputs and outputs, a letter each."""
    sources = sorted(Path(loading.__file__).parent.glob("*.cpp"))
    text = "\n".join(source.read_text() for source in sources)
    return dict(re.findall(r'^OPERATOR\((\w+), "([fi]+)"\)', text, re.MULTILINE))


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_table_and_sources_have_the_same_operators():
    assert declared().keys() == kernels.OPERATORS.keys()


@needs_kernels
def test_library_and_package_have_them():
    file = loading.library()
    library = ctypes.CDLL(str(file))
    for name in kernels.OPERATORS:
        assert hasattr(library, name), name
        assert getattr(kernels, name).func == f"{file}:{name}"


@pytest.mark.parametrize("name", kernels.OPERATORS)
def test_row_fits_the_function(name):
    shape, gradient, outputs = kernels.OPERATORS[name]
    types, inputs = declared()[name], parameters(shape)
    assert len(types) == len(inputs) + outputs
    assert types.endswith("f" * outputs)
    if gradient is not None:
        assert parameters(gradient) == [*inputs, "out", "dout"]


# The plain formulations, by the names of the operators.


def add_bias(x, bias):
    return x + bias


def gelu(x):
    return gelu_native(x)


def relu(x):
    return ops.relu(x)


def dense(x, weight, bias):
    return ops.matmul(x, ops.reshape(weight, (weight.shape[0], -1)).T) + bias


def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, epsilon):
    hidden = gelu_native(dense(layer_norm(x, gamma, beta, epsilon), weight1, bias1))
    return x + dense(hidden, weight2, bias2)


def mlp_training(x, gamma, beta, weight1, bias1, weight2, bias2, factors, epsilon):
    before = dense(layer_norm(x, gamma, beta, epsilon), weight1, bias1)
    branch = dense(gelu_native(before), weight2, bias2)
    factors = ops.stop_gradient(ops.reshape(factors, (-1, 1, 1, 1)))
    return x + factors * branch, ops.stop_gradient(before)


def window_branch(x, gamma, beta, qkv, qkv_bias, proj, proj_bias, mask, sizes, matrix, epsilon):
    _, height, width, _ = x.shape
    normal = layer_norm(x, gamma, beta, epsilon)
    normal = layers.pad_bottom_right(normal, -height % WINDOW, -width % WINDOW)
    attended = window_attention(dense(normal, qkv, qkv_bias), mask, sizes)
    return x + dense(layers.crop_top_left(attended, height, width), proj, proj_bias)


def global_branch(x, gamma, beta, q, q_bias, kv, kv_bias, proj, proj_bias, heads, epsilon):
    normal = layer_norm(x, gamma, beta, epsilon)
    attended = global_attention(dense(normal, q, q_bias), dense(normal, kv, kv_bias), heads)
    return x + dense(attended, proj, proj_bias)


def subsampled_branch(
    x,
    gamma,
    beta,
    q,
    q_bias,
    kv,
    kv_bias,
    proj,
    proj_bias,
    sr,
    sr_bias,
    sr_gamma,
    sr_beta,
    heads,
    epsilon,
    sr_epsilon,
):
    normal = layer_norm(x, gamma, beta, epsilon)
    summary = convolution._patch_conv_matmul(normal, sr, sr_bias, sr[0, 0])
    summary = layer_norm(summary, sr_gamma, sr_beta, sr_epsilon)
    attended = global_attention(dense(normal, q, q_bias), dense(summary, kv, kv_bias), heads)
    return x + dense(attended, proj, proj_bias)


def scale(x, factors):
    return x * ops.reshape(factors, (x.shape[0], 1, 1, x.shape[3]))


def layer_norm(x, gamma, beta, epsilon):
    centered = x - ops.mean(x, -1, keep_dims=True)
    variance = ops.mean(centered * centered, -1, keep_dims=True)
    return centered * ops.rsqrt(variance + epsilon) * gamma + beta


def moments(x):
    mean = ops.mean(x, 0)
    return mean, ops.mean(ops.square(x - mean), 0)


def normalize(x, mean, scale, shift):
    return (x - mean) * scale + shift


HEADS, WINDOW = 2, 3


def window_attention(qkv, mask, sizes):
    _, height, width, channels = qkv.shape
    parts = ()
    for part in ops.split(qkv, channels // 3, -1):
        parts = (*parts, layers.partition_windows(part, HEADS, WINDOW))
    return layers.merge_windows(layers.attend(*parts, mask), height, width, WINDOW)


def global_attention(q, kv, heads):
    _, height, width, channels = q.shape
    k, v = ops.split(kv, channels, -1)
    out = layers.attend(
        layers.split_heads(q, HEADS), layers.split_heads(k, HEADS), layers.split_heads(v, HEADS)
    )
    return layers.merge_heads(out, height, width)


def depthwise(x, weight, bias):
    return convolution._depthwise_3x3_shifts(x, weight, bias)


def conv3x3(x, weight):
    return dense_convolution._conv_3x3_matmul(x, weight)


def swap_axes(x):
    return ops.transpose(x, (0, 2, 1))


def gather_patches(x, matrix):
    return convolution._gather(x, matrix)


def resize_bilinear(x, rows, columns):
    return layers.resize_bilinear(x, rows.shape[0], columns.shape[0])


def roi_align(p2, p3, p4, p5, regions, matrix):
    return layers.roi_align((p2, p3, p4, p5), regions, matrix.shape[0])


def cross_entropy(logits, labels, rows, columns):
    logits = layers.resize_bilinear(logits, rows.shape[0], columns.shape[0])
    one_hot = ops.one_hot(labels, logits.shape[-1], Tensor(1.0), Tensor(0.0))
    return -ops.reduce_sum(ops.log_softmax(logits, -1) * one_hot, (2, 3))


def floats(*shape: int, seed: int = 1) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


LABELS = np.random.default_rng(2).integers(-1, 19, (2, 11, 12), np.int32)
MASK = np.where(tokens(1, 6, 1, WINDOW**2, WINDOW**2) > 1, np.float32(-1000), np.float32(0))
X = Tensor(tokens(2, 6, 9, 20))
EPSILON = Tensor([1e-3], ms.float32)
PYRAMID = (X, floats(2, 3, 5, 20), floats(2, 2, 3, 20), floats(2, 1, 2, 20))
# Image, level and corners in its pixels.
REGIONS = Tensor(
    [[0, 0, 1.5, 0.2, 8.1, 5], [1, 1, -1, 0, 3.3, 3], [1, 3, 0, 0, 2, 1], [0, 2, 0, 1, 3, 2]],
    ms.float32,
)
# With the map's last window padded.
NARROW = Tensor(tokens(2, 6, 8, 20))
NORM = (floats(20), floats(20, seed=3))
PROJ = (floats(20, 20, seed=6), floats(20, seed=7))
ATTENTION = (NARROW, *NORM, floats(20, 20), floats(20), floats(40, 20), floats(40), *PROJ)
LAYERS = (floats(37, 20, seed=4), floats(37), floats(20, 37, seed=6), floats(20))
MLP = (X, floats(20), floats(20, seed=3), *LAYERS)
# Plain formulation -> inputs, and how many of them, the first ones, are differentiated.
CASES = {
    add_bias: ((X, floats(20)), 2),
    gelu: ((X,), 1),
    relu: ((X,), 1),
    dense: ((X, floats(37, 5, 2, 2), floats(37)), 3),
    mlp: ((*MLP, EPSILON), 7),
    mlp_training: ((*MLP, Tensor([0.0, 1.25]), EPSILON), 7),
    window_branch: (
        (
            NARROW,
            *NORM,
            floats(60, 20),
            floats(60),
            *PROJ,
            Tensor(MASK),
            Tensor([HEADS, WINDOW], ms.int32),
            floats(WINDOW, WINDOW),
            EPSILON,
        ),
        7,
    ),
    global_branch: ((*ATTENTION, Tensor([HEADS], ms.int32), EPSILON), 9),
    subsampled_branch: (
        (
            *ATTENTION,
            floats(20, 20, 3, 3, seed=8),
            floats(20, seed=9),
            floats(20, seed=10),
            floats(20, seed=11),
            Tensor([HEADS], ms.int32),
            EPSILON,
            EPSILON,
        ),
        13,
    ),
    scale: ((X, floats(2, 20)), 1),
    layer_norm: ((X, floats(20), floats(20, seed=3), EPSILON), 3),
    moments: ((floats(300, 20),), 1),
    normalize: ((floats(300, 20), floats(20), floats(20, seed=3), floats(20, seed=4)), 4),
    window_attention: ((floats(2, 6, 9, 60), Tensor(MASK), Tensor([HEADS, WINDOW], ms.int32)), 1),
    global_attention: ((X, floats(2, 2, 3, 40), Tensor([HEADS], ms.int32)), 2),
    depthwise: ((X, floats(20, 1, 3, 3), floats(20, seed=3)), 3),
    conv3x3: ((X, floats(7, 20, 3, 3)), 2),
    swap_axes: ((floats(2, 54, 20),), 1),
    gather_patches: ((X, floats(3, 3)), 1),
    resize_bilinear: ((X, _neighbor_table(6, 11), _neighbor_table(9, 12)), 1),
    roi_align: ((*PYRAMID, REGIONS, floats(3, 3)), 4),
    cross_entropy: ((X, Tensor(LABELS), _neighbor_table(6, 11), _neighbor_table(9, 12)), 1),
}


def test_every_gradient_is_compared():
    with_gradient = {name for name, row in kernels.OPERATORS.items() if row.gradient}
    assert {plain.__name__ for plain in CASES} == with_gradient


class Weighted(nn.Cell):
    """The sum of a function's outputs, each number with a weight of its own, and the outputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weights = floats(10_000, seed=5)

    def construct(self, *inputs):
        outputs = self.function(*inputs)
        if not isinstance(outputs, tuple):
            outputs = (outputs,)
        total = 0
        for output in outputs:
            total = total + (ops.reshape(output, (-1,)) * self.weights[: output.size]).sum()
        return total, outputs


def outputs_and_gradients(function, inputs) -> tuple[list[np.ndarray], list[np.ndarray]]:
    work = ms.value_and_grad(Weighted(function), tuple(range(len(inputs))), has_aux=True)
    (_, outputs), gradients = work(*inputs)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [t.asnumpy() for t in outputs], [t.asnumpy() for t in gradients]


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("plain", CASES, ids=lambda plain: plain.__name__)
def test_kernel_gives_the_plain_formulations_numbers(plain):
    inputs, differentiated = CASES[plain]
    outputs, gradients = outputs_and_gradients(getattr(kernels, plain.__name__), inputs)
    ms.set_context(mode=ms.PYNATIVE_MODE)  # without a graph to build
    with layers.use_formulation("matmul"):
        expected_outputs, expected_gradients = outputs_and_gradients(plain, inputs)
    assert len(gradients) == len(inputs)
    assert not any(gradient.any() for gradient in gradients[differentiated:])
    ours = outputs + gradients[:differentiated]
    theirs = expected_outputs + expected_gradients[:differentiated]
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.shape == expected.shape
        # MindSpore's softmax is off by 8e-6.
        assert np.linalg.norm(actual - expected) < 2e-5 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.skipif(
    "x86_64_v4" not in kernels.status(), reason="the kernels in use are those of older processors"
)
def test_all_of_this_holds_for_the_build_for_older_processors():
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": "AVX512_SKX"}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout.splitlines()[-1]  # this test, and none for lack of kernels
