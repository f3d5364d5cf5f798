"""How MindSpore differentiates the kernels: for each operator the `bprop` of its primitive.

Called with the inputs, the output and the gradient by the output, it returns a gradient for each
input; zeros stand for what is not differentiated. MindSpore compiles the source of these
functions, so they are plain ones of a file, and it counts their parameters, so all are named.
"""

from __future__ import annotations

from mindspore import ops

# This package is not complete yet when it imports this module; it is when a gradient is compiled.
from mindtwins.layers import kernels


def add_bias(x, bias, out, dout):
    return dout, kernels.add_bias_gradient(dout, bias)


def gelu(x, out, dout):
    return (kernels.gelu_gradient(dout, x),)


def dense(x, weight, bias, out, dout):
    return kernels.dense_gradient(dout, x, weight)


def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, epsilon, out, dout):
    normal = kernels.layer_norm(x, gamma, beta, epsilon)
    before = kernels.dense(normal, weight1, bias1)
    hidden = kernels.gelu(before)
    grad_hidden, grad_weight2, grad_bias2 = kernels.dense_gradient(dout, hidden, weight2)
    grad_before = kernels.gelu_gradient(grad_hidden, before)
    grad_normal, grad_weight1, grad_bias1 = kernels.dense_gradient(grad_before, normal, weight1)
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(grad_normal, x, gamma, epsilon)
    return (
        dout + grad_x,
        grad_gamma,
        grad_beta,
        grad_weight1,
        grad_bias1,
        grad_weight2,
        grad_bias2,
        ops.zeros_like(epsilon),
    )


def scale(x, factors, out, dout):
    return kernels.scale(dout, factors), ops.zeros_like(factors)


def layer_norm(x, gamma, beta, epsilon, out, dout):
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(dout, x, gamma, epsilon)
    return grad_x, grad_gamma, grad_beta, ops.zeros_like(epsilon)


def moments(x, out, dout):
    mean, _ = out
    grad_mean, grad_variance = dout
    return (kernels.moments_gradient(grad_mean, grad_variance, x, mean),)


def normalize(x, mean, scale, shift, out, dout):
    return kernels.normalize_gradient(dout, x, mean, scale)


def window_attention(qkv, mask, sizes, out, dout):
    grad_qkv = kernels.window_attention_gradient(dout, qkv, mask, sizes)
    return grad_qkv, ops.zeros_like(mask), ops.zeros_like(sizes)


def global_attention(q, kv, heads, out, dout):
    grad_q, grad_kv = kernels.global_attention_gradient(dout, q, kv, heads)
    return grad_q, grad_kv, ops.zeros_like(heads)


def depthwise(x, weight, bias, out, dout):
    return kernels.depthwise_gradient(dout, x, weight)


def conv3x3(x, weight, out, dout):
    return kernels.conv3x3_gradient(dout, x, weight)


def swap_axes(x, out, dout):
    return (kernels.swap_axes(dout),)


def gather_patches(x, matrix, out, dout):
    return kernels.gather_patches_gradient(dout, matrix), ops.zeros_like(matrix)


def resize_bilinear(x, rows, columns, out, dout):
    grad_x = kernels.resize_bilinear_gradient(dout, x, rows, columns)
    return grad_x, ops.zeros_like(rows), ops.zeros_like(columns)


def roi_align(p2, p3, p4, p5, regions, matrix, out, dout):
    gradients = kernels.roi_align_gradient(dout, p2, p3, p4, p5, regions)
    return (*gradients, ops.zeros_like(regions), ops.zeros_like(matrix))


def cross_entropy(logits, labels, rows, columns, out, dout):
    grad_logits = kernels.cross_entropy_gradient(dout, logits, labels, rows, columns)
    return grad_logits, ops.zeros_like(labels), ops.zeros_like(rows), ops.zeros_like(columns)
