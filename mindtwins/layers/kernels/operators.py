"""MindSpore primitives that call the C++ kernels, with their gradients.

float32 only. They are None where the kernels are not available: layers then never use them.
"""

from __future__ import annotations

from collections.abc import Callable

from mindspore import ops

from mindtwins.layers.kernels.loading import FILE, available


def _operator(name: str, infer: Callable, bprop: Callable | None = None) -> ops.Custom | None:
    """The kernel `name`; `infer` gives the output's shape from the inputs', and its dtype alike."""
    if not available():
        return None
    return ops.Custom(f"{FILE}:{name}", infer, infer, func_type="aot", bprop=bprop)


# x (..., C), gamma, beta, epsilon (1,) -> x normalized over the last axis
_layer_norm_gradient = _operator(
    "layer_norm_gradient", lambda dy, x, gamma, epsilon: (x, gamma, gamma)
)


def _layer_norm_bprop(x, gamma, beta, epsilon, out, dout):
    by_x, by_gamma, by_beta = _layer_norm_gradient(dout, x, gamma, epsilon)
    return by_x, by_gamma, by_beta, ops.zeros_like(epsilon)


layer_norm = _operator("layer_norm", lambda x, gamma, beta, epsilon: x, _layer_norm_bprop)


# x (..., C), bias (C,) -> x + bias
_add_bias_gradient = _operator("add_bias_gradient", lambda dy, bias: bias)


def _add_bias_bprop(x, bias, out, dout):
    return dout, _add_bias_gradient(dout, bias)


add_bias = _operator("add_bias", lambda x, bias: x, _add_bias_bprop)


# x (..., C), bias (C,) -> y * Phi(y) for y = x + bias
_bias_gelu_gradient = _operator("bias_gelu_gradient", lambda dy, x, bias: (x, bias))


def _bias_gelu_bprop(x, bias, out, dout):
    return _bias_gelu_gradient(dout, x, bias)


bias_gelu = _operator("bias_gelu", lambda x, bias: x, _bias_gelu_bprop)


# x (B, ..., C), factors (B, C) -> x * factors; the factors are not to be differentiated
_scale_gradient = _operator("scale", lambda x, factors: x)


def _scale_bprop(x, factors, out, dout):
    return _scale_gradient(dout, factors), ops.zeros_like(factors)


scale = _operator("scale", lambda x, factors: x, _scale_bprop)


# x (A, B, C) -> (A, C, B)
def _swapped(x):
    return (x[0], x[2], x[1]) if isinstance(x, list | tuple) else x


_swap_axes_gradient = _operator("swap_axes", _swapped)


def _swap_axes_bprop(x, out, dout):
    return (_swap_axes_gradient(dout),)


swap_axes = _operator("swap_axes", _swapped, _swap_axes_bprop)


# x (B, H, W, C), any matrix (k, k), H and W multiples of k -> (B, H / k, W / k, C k k), the numbers
# of each patch in the order (C, k, k)
def _patches(x, matrix):
    if not isinstance(x, list | tuple):
        return x
    side = matrix[0]
    return x[0], x[1] // side, x[2] // side, x[3] * side * side


def _pixels(patches, matrix):
    if not isinstance(patches, list | tuple):
        return patches
    side = matrix[0]
    return patches[0], patches[1] * side, patches[2] * side, patches[3] // (side * side)


_gather_patches_gradient = _operator("gather_patches_gradient", _pixels)


def _gather_patches_bprop(x, matrix, out, dout):
    return _gather_patches_gradient(dout, matrix), ops.zeros_like(matrix)


gather_patches = _operator("gather_patches", _patches, _gather_patches_bprop)


# x -> (1,), the sum of the squares of its elements; not to be differentiated
sum_of_squares = _operator("sum_of_squares", lambda x: [1] if isinstance(x, list | tuple) else x)


# x (B, H, W, C), weight (C, 1, 3, 3), bias (C,) -> convolution with zero padding, plus bias
_depthwise_gradient = _operator(
    "depthwise_gradient", lambda dy, x, weight: (x, weight, _channels(weight))
)


def _channels(weight):
    """Of a shape: its first entry; of a dtype: itself."""
    return weight[:1] if isinstance(weight, list | tuple) else weight


def _depthwise_bprop(x, weight, bias, out, dout):
    return _depthwise_gradient(dout, x, weight)


depthwise = _operator("depthwise", lambda x, weight, bias: x, _depthwise_bprop)


# x (B, H, W, in), weight (out, in, 3, 3) -> convolution with zero padding, (B, H, W, out)
def _convolved(x, weight):
    return (*x[:-1], weight[0]) if isinstance(x, list | tuple) else x


_conv3x3_gradient = _operator("conv3x3_gradient", lambda dy, x, weight: (x, weight))


def _conv3x3_bprop(x, weight, out, dout):
    return _conv3x3_gradient(dout, x, weight)


conv3x3 = _operator("conv3x3", _convolved, _conv3x3_bprop)


# x (B, H, W, C), tables of the new rows (height, 2) and columns (width, 2): index of the old point
# before it, and how much the one after that counts -> (B, height, width, C)
def _resized(x, rows, columns):
    return (x[0], rows[0], columns[0], x[3]) if isinstance(x, list | tuple) else x


_resize_bilinear_gradient = _operator("resize_bilinear_gradient", lambda dy, x, rows, columns: x)


def _resize_bilinear_bprop(x, rows, columns, out, dout):
    by_x = _resize_bilinear_gradient(dout, x, rows, columns)
    return by_x, ops.zeros_like(rows), ops.zeros_like(columns)


resize_bilinear = _operator("resize_bilinear", _resized, _resize_bilinear_bprop)


# logits (B, H, W, C), labels (B, height, width) int32, tables as above -> (B, height), cross
# entropy of the resized logits summed over each row of pixels; labels of no class count nothing
def _row_of_labels(logits, labels, rows, columns):
    return labels[:2] if isinstance(logits, list | tuple) else logits


_cross_entropy_gradient = _operator(
    "cross_entropy_gradient", lambda dout, logits, labels, rows, columns: logits
)


def _cross_entropy_bprop(logits, labels, rows, columns, out, dout):
    by_logits = _cross_entropy_gradient(dout, logits, labels, rows, columns)
    return by_logits, ops.zeros_like(labels), ops.zeros_like(rows), ops.zeros_like(columns)


cross_entropy = _operator("cross_entropy", _row_of_labels, _cross_entropy_bprop)


# x (N, C) -> mean and biased variance, (C,) each
def _two_of_channels(x):
    channels = x[-1:] if isinstance(x, list | tuple) else x
    return channels, channels


_moments_gradient = _operator("moments_gradient", lambda by_mean, by_variance, x, mean: x)


def _moments_bprop(x, out, dout):
    return (_moments_gradient(dout[0], dout[1], x, out[0]),)


moments = _operator("moments", _two_of_channels, _moments_bprop)


# x (N, C), mean, scale, shift (C,) -> (x - mean) * scale + shift
_normalize_gradient = _operator(
    "normalize_gradient", lambda dy, x, mean, scale: (x, mean, mean, mean)
)


def _normalize_bprop(x, mean, scale, shift, out, dout):
    return _normalize_gradient(dout, x, mean, scale)


normalize = _operator("normalize", lambda x, mean, scale, shift: x, _normalize_bprop)


# qkv (B, H, W, 3 C), mask (1, windows, 1, N, N) or (1,) for none, (heads, side) int32
# -> attention within each window, (B, H, W, C)
def _third_of_channels(qkv, mask, sizes):
    return (*qkv[:-1], qkv[-1] // 3) if isinstance(qkv, list | tuple) else qkv


_window_attention_gradient = _operator(
    "window_attention_gradient", lambda dout, qkv, mask, sizes: qkv
)


def _window_attention_bprop(qkv, mask, sizes, out, dout):
    by_qkv = _window_attention_gradient(dout, qkv, mask, sizes)
    return by_qkv, ops.zeros_like(mask), ops.zeros_like(sizes)


window_attention = _operator("window_attention", _third_of_channels, _window_attention_bprop)


# q (B, H, W, C), kv (B, h, w, 2 C), (heads,) int32 -> attention of q to kv, (B, H, W, C)
_global_attention_gradient = _operator(
    "global_attention_gradient", lambda dout, q, kv, heads: (q, kv)
)


def _global_attention_bprop(q, kv, heads, out, dout):
    by_q, by_kv = _global_attention_gradient(dout, q, kv, heads)
    return by_q, by_kv, ops.zeros_like(heads)


global_attention = _operator("global_attention", lambda q, kv, heads: q, _global_attention_bprop)
