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


# x -> x * Phi(x)
_gelu_gradient = _operator("gelu_gradient", lambda dy, x: x)


def _gelu_bprop(x, out, dout):
    return (_gelu_gradient(dout, x),)


gelu = _operator("gelu", lambda x: x, _gelu_bprop)


# x (..., C), gamma, beta, epsilon (1,) -> x normalised over the last axis
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
