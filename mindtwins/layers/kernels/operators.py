"""The table of the kernels: for each C++ function its outputs' shapes and its gradient.

A new operator is a C++ function in a file of this folder and its row here, which makes it
`kernels.NAME`; its gradient is a second C++ function with a row, and a function in `gradients.py`
that calls it. All outputs are float32, and so are inputs unless noted; a kernel that is given
another type refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
from mindspore import ops

# Where MindSpore itself takes it from, in all its versions.
from mindspore.nn.cell import MixedPrecisionType, _pynative_executor

from mindtwins.layers.kernels import gradients
from mindtwins.layers.kernels.loading import library


class Operator(NamedTuple):
    """What MindSpore has to know about a C++ function.

    Attributes:
        shape: the shapes of its inputs -> that of its output, or a tuple of shapes.
        gradient: its `bprop`, of `gradients.py`; None if it is not to be differentiated.
        outputs: how many there are.
    """

    shape: Callable
    gradient: Callable | None = None
    outputs: int = 1


def _dense_shape(x, weight, bias):
    if x[-1] != math.prod(weight[1:]):
        raise ValueError(f"{x[-1]} channels do not fit a weight of {weight}")
    return *x[:-1], weight[0]


def _patches_shape(x, matrix):
    side = matrix[0]
    return x[0], x[1] // side, x[2] // side, x[3] * side * side


def _pixels_shape(patches, matrix):
    side = matrix[0]
    return patches[0], patches[1] * side, patches[2] * side, patches[3] // (side * side)


# fmt: off
def _mlp_training_shape(x, gamma, beta, weight1, bias1, weight2, bias2, factors, epsilon):
    if factors != x[:1]:
        raise ValueError(f"{factors} factors do not fit {x[0]} images")
    return x, (*x[:-1], weight1[0])


def _mlp_gradient_shape(dout, x, before, gamma, beta, weight1, weight2, factors, epsilon):
    return before, x, x, before, x


def _subsampled_branch_shape(
    x, gamma, beta, q, q_bias, kv, kv_bias, proj, proj_bias,
    sr, sr_bias, sr_gamma, sr_beta, heads, epsilon, sr_epsilon,
):
    return x
# fmt: on


# By the name of the C++ function.
OPERATORS = {
    # x (..., C), bias (C,) -> x + bias
    "add_bias": Operator(lambda x, bias: x, gradients.add_bias),
    "add_bias_gradient": Operator(lambda dout, bias: bias),
    # x -> x Phi(x)
    "gelu": Operator(lambda x: x, gradients.gelu),
    "gelu_gradient": Operator(lambda dout, x: x),
    # x -> x where it is above 0, NaN where it is, else 0
    "relu": Operator(lambda x: x, gradients.relu),
    "relu_gradient": Operator(lambda dout, out: dout),
    # x (..., in), weight (out, ...) of `in` numbers for each output, bias (out,)
    # -> x weight^T + bias, (..., out)
    "dense": Operator(_dense_shape, gradients.dense),
    "dense_gradient": Operator(lambda dout, x, weight: (x, weight, weight[:1]), outputs=3),
    "weight_gradient": Operator(lambda dout, x, weight: (weight, weight[:1]), outputs=2),
    # x (..., C), gamma, beta, weight (hidden, C), bias, weight (C, hidden), bias, epsilon (1,)
    # -> x + the two linear layers, GELU between them, of layer_norm(x)
    "mlp": Operator(
        lambda x, gamma, beta, weight1, bias1, weight2, bias2, epsilon: x, gradients.mlp
    ),
    # The same for training, with factors (B,) of the branch and B first in x (B, ..., C)
    # -> also what enters GELU, (B, ..., hidden). Neither that nor factors are to be differentiated.
    "mlp_training": Operator(_mlp_training_shape, gradients.mlp_training, outputs=2),
    "mlp_gradient": Operator(_mlp_gradient_shape, outputs=5),
    # x (B, H, W, C), gamma, beta, weight (3 C, C), bias, weight (C, C), bias, mask as below,
    # (heads, side) int32, any matrix (side, side), epsilon (1,) -> x + the second linear layer of
    # attention within windows of the first one of layer_norm(x), padded with zeros to whole windows
    "window_branch": Operator(
        lambda x, gamma, beta, qkv, qkv_bias, proj, proj_bias, mask, sizes, matrix, epsilon: x,
        gradients.window_branch,
    ),
    # x (B, H, W, C), gamma, beta, weight (C, C), bias, weight (2 C, C), bias, weight (C, C), bias,
    # (heads,) int32, epsilon (1,) -> x + the last linear layer of attention of the first one of
    # layer_norm(x) to the second one of layer_norm(x)
    "global_branch": Operator(
        lambda x, gamma, beta, q, q_bias, kv, kv_bias, proj, proj_bias, heads, epsilon: x,
        gradients.global_branch,
    ),
    # The same, but before the second linear layer a convolution whose stride is its kernel k, and
    # a norm: weight (C, C, k, k), bias, gamma, beta, and the norm's epsilon (1,)
    "subsampled_branch": Operator(_subsampled_branch_shape, gradients.subsampled_branch),
    # x (B, ..., C), factors (B, C) -> x * factors; the factors are not to be differentiated
    "scale": Operator(lambda x, factors: x, gradients.scale),
    # x (..., C), gamma, beta (C,), epsilon (1,) -> x normalized over the last axis
    "layer_norm": Operator(lambda x, gamma, beta, epsilon: x, gradients.layer_norm),
    "layer_norm_gradient": Operator(lambda dout, x, gamma, epsilon: (x, gamma, gamma), outputs=3),
    # x (N, C) -> mean and biased variance, (C,) each
    "moments": Operator(lambda x: (x[1:], x[1:]), gradients.moments, outputs=2),
    "moments_gradient": Operator(lambda grad_mean, grad_variance, x, mean: x),
    # x (N, C), mean, scale, shift (C,) -> (x - mean) * scale + shift
    "normalize": Operator(lambda x, mean, scale, shift: x, gradients.normalize),
    "normalize_gradient": Operator(lambda dout, x, mean, scale: (x, mean, mean, mean), outputs=4),
    # x -> (1,), the sum of the squares of its elements
    "sum_of_squares": Operator(lambda x: (1,)),
    # qkv (B, H, W, 3 C), mask (1, windows, 1, N, N) or (1,) for none, (heads, side) int32
    # -> attention within each window, (B, H, W, C)
    "window_attention": Operator(
        lambda qkv, mask, sizes: (*qkv[:3], qkv[3] // 3), gradients.window_attention
    ),
    "window_attention_gradient": Operator(lambda dout, qkv, mask, sizes: qkv),
    # q (B, H, W, C), kv (B, h, w, 2 C), (heads,) int32 -> attention of q to kv, (B, H, W, C)
    "global_attention": Operator(lambda q, kv, heads: q, gradients.global_attention),
    "global_attention_gradient": Operator(lambda dout, q, kv, heads: (q, kv), outputs=2),
    # x (B, H, W, C), weight (C, 1, 3, 3), bias (C,) -> convolution with zero padding, plus bias
    "depthwise": Operator(lambda x, weight, bias: x, gradients.depthwise),
    "depthwise_gradient": Operator(lambda dout, x, weight: (x, weight, weight[:1]), outputs=3),
    # x (B, H, W, in), weight (out, in, 3, 3) -> convolution with zero padding, (B, H, W, out)
    "conv3x3": Operator(lambda x, weight: (*x[:3], weight[0]), gradients.conv3x3),
    "conv3x3_gradient": Operator(lambda dout, x, weight: (x, weight), outputs=2),
    # x (A, B, C) -> (A, C, B)
    "swap_axes": Operator(lambda x: (x[0], x[2], x[1]), gradients.swap_axes),
    # x (B, H, W, C), any matrix (k, k), H and W multiples of k -> (B, H / k, W / k, C k k), the
    # numbers of each patch in the order (C, k, k)
    "gather_patches": Operator(_patches_shape, gradients.gather_patches),
    "gather_patches_gradient": Operator(_pixels_shape),
    # x (B, H, W, C), tables of the new rows (height, 2) and columns (width, 2): index of the old
    # point before it, and how much the one after that counts -> (B, height, width, C)
    "resize_bilinear": Operator(
        lambda x, rows, columns: (x[0], rows[0], columns[0], x[3]), gradients.resize_bilinear
    ),
    "resize_bilinear_gradient": Operator(lambda dout, x, rows, columns: x),
    # four maps (B, H_i, W_i, C), regions (N, 6), any matrix (bins, bins)
    # -> RoIAlign of the regions, (N, bins, bins, C)
    "roi_align": Operator(
        lambda p2, p3, p4, p5, regions, matrix: (regions[0], *matrix, p2[3]), gradients.roi_align
    ),
    "roi_align_gradient": Operator(
        lambda dout, p2, p3, p4, p5, regions: (p2, p3, p4, p5), outputs=4
    ),
    # logits (B, H, W, C), labels (B, height, width) int32, tables as above -> (B, height), cross
    # entropy of the resized logits summed over each row of pixels; labels of no class count nothing
    "cross_entropy": Operator(
        lambda logits, labels, rows, columns: labels[:2], gradients.cross_entropy
    ),
    "cross_entropy_gradient": Operator(lambda dout, logits, labels, rows, columns: logits),
}


class Kernel(ops.Custom):
    """A C++ function as a primitive, which is given float32 in a cell of fp16 too.

    To what a cell of fp16 calls in PyNative mode MindSpore gives fp16, without changing what the
    inputs say of their type; a graph does not.
    """

    def __call__(self, *inputs: ms.Tensor) -> ms.Tensor | tuple[ms.Tensor, ...]:
        _pynative_executor.set_mixed_precision_type(MixedPrecisionType.FP32)
        try:
            return super().__call__(*inputs)
        finally:
            _pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET, False)


def primitive(name: str) -> Kernel | None:
    """MindSpore's primitive of an operator; None where the kernels are not available."""
    file = library()
    if file is None:
        return None
    shape, gradient, outputs = OPERATORS[name]
    dtype = ms.float32 if outputs == 1 else (ms.float32,) * outputs
    return Kernel(f"{file}:{name}", shape, dtype, func_type="aot", bprop=gradient)
