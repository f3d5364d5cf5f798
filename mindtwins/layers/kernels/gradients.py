"""How MindSpore differentiates the kernels: for each operator the `bprop` of its primitive.

Called with the inputs, the output and the gradient by the output, it returns a gradient for each
input; zeros stand for what is not differentiated. MindSpore compiles the source of these
functions, so they are plain ones of a file, and it counts their parameters, so all are named.
"""

from __future__ import annotations

from mindspore import ops

# This package is not complete yet when it imports this module; it is when a gradient is compiled.
from mindtwins.layers import kernels
from mindtwins.layers.padding import crop_top_left, pad_bottom_right


def add_bias(x, bias, out, dout):
    return dout, kernels.add_bias_gradient(dout, bias)


def gelu(x, out, dout):
    return (kernels.gelu_gradient(dout, x),)


def relu(x, out, dout):
    return (kernels.relu_gradient(dout, out),)


def dense(x, weight, bias, out, dout):
    return kernels.dense_gradient(dout, x, weight)


def mlp(x, gamma, beta, weight1, bias1, weight2, bias2, epsilon, out, dout):
    factors = ops.ones(x.shape[:1], x.dtype)
    before = kernels.dense(kernels.layer_norm(x, gamma, beta, epsilon), weight1, bias1)
    gradients = _add_mlp(x, before, gamma, beta, weight1, weight2, factors, epsilon, dout)
    return (*gradients, ops.zeros_like(epsilon))


def mlp_training(x, gamma, beta, weight1, bias1, weight2, bias2, factors, epsilon, out, dout):
    _, before = out
    gradients = _add_mlp(x, before, gamma, beta, weight1, weight2, factors, epsilon, dout[0])
    return (*gradients, ops.zeros_like(factors), ops.zeros_like(epsilon))


def _add_mlp(x, before, gamma, beta, weight1, weight2, factors, epsilon, dout):
    """Gradients by x, and by the weights and biases of the norm and the two linear layers."""
    hidden, normal, grad_branch, grad_before, grad_normal = kernels.mlp_gradient(
        dout, x, before, gamma, beta, weight1, weight2, factors, epsilon
    )
    grad_layer1 = kernels.weight_gradient(grad_before, normal, weight1)
    grad_layer2 = kernels.weight_gradient(grad_branch, hidden, weight2)
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(grad_normal, x, gamma, epsilon)
    return (dout + grad_x, grad_gamma, grad_beta, *grad_layer1, *grad_layer2)


def window_branch(
    x, gamma, beta, qkv, qkv_bias, proj, proj_bias, mask, sizes, matrix, epsilon, out, dout
):
    side = matrix.shape[0]
    _, height, width, _ = x.shape
    bottom, right = -height % side, -width % side
    normal = kernels.layer_norm(x, gamma, beta, epsilon)
    normal = pad_bottom_right(normal, bottom, right)
    tokens = kernels.dense(normal, qkv, qkv_bias)
    attended = crop_top_left(kernels.window_attention(tokens, mask, sizes), height, width)
    grad_attended, grad_proj, grad_proj_bias = kernels.dense_gradient(dout, attended, proj)
    grad_attended = pad_bottom_right(grad_attended, bottom, right)
    grad_tokens = kernels.window_attention_gradient(grad_attended, tokens, mask, sizes)
    grad_normal, grad_qkv, grad_qkv_bias = kernels.dense_gradient(grad_tokens, normal, qkv)
    grad_normal = crop_top_left(grad_normal, height, width)
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(grad_normal, x, gamma, epsilon)
    grad_layers = (grad_qkv, grad_qkv_bias, grad_proj, grad_proj_bias)
    constants = ops.zeros_like(mask), ops.zeros_like(sizes), ops.zeros_like(matrix)
    return (
        dout + grad_x,
        grad_gamma,
        grad_beta,
        *grad_layers,
        *constants,
        ops.zeros_like(epsilon),
    )


def global_branch(
    x, gamma, beta, q, q_bias, kv, kv_bias, proj, proj_bias, heads, epsilon, out, dout
):
    normal = kernels.layer_norm(x, gamma, beta, epsilon)
    grad_normal, grad_context, grad_layers = _attend_globally(
        normal, normal, q, q_bias, kv, kv_bias, proj, heads, dout
    )
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(
        grad_normal + grad_context, x, gamma, epsilon
    )
    constants = ops.zeros_like(heads), ops.zeros_like(epsilon)
    return (dout + grad_x, grad_gamma, grad_beta, *grad_layers, *constants)


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
    out,
    dout,
):
    side = sr.shape[2]
    _, height, width, _ = x.shape
    patch = ops.zeros((side, side), x.dtype)
    normal = kernels.layer_norm(x, gamma, beta, epsilon)
    whole = crop_top_left(normal, height // side * side, width // side * side)
    patches = kernels.gather_patches(whole, patch)
    reduced = kernels.dense(patches, sr, sr_bias)
    context = kernels.layer_norm(reduced, sr_gamma, sr_beta, sr_epsilon)
    grad_normal, grad_context, grad_layers = _attend_globally(
        normal, context, q, q_bias, kv, kv_bias, proj, heads, dout
    )
    grad_reduced, grad_sr_gamma, grad_sr_beta = kernels.layer_norm_gradient(
        grad_context, reduced, sr_gamma, sr_epsilon
    )
    grad_patches, grad_sr, grad_sr_bias = kernels.dense_gradient(grad_reduced, patches, sr)
    grad_whole = kernels.gather_patches_gradient(grad_patches, patch)
    grad_whole = pad_bottom_right(grad_whole, height % side, width % side)
    grad_x, grad_gamma, grad_beta = kernels.layer_norm_gradient(
        grad_normal + grad_whole, x, gamma, epsilon
    )
    grad_reduction = grad_sr, grad_sr_bias, grad_sr_gamma, grad_sr_beta
    constants = ops.zeros_like(heads), ops.zeros_like(epsilon), ops.zeros_like(sr_epsilon)
    return (dout + grad_x, grad_gamma, grad_beta, *grad_layers, *grad_reduction, *constants)


def _attend_globally(normal, context, q, q_bias, kv, kv_bias, proj, heads, dout):
    """Gradients by tokens and context, and by the weights and biases of the three linear layers."""
    queries, keys_values = kernels.dense(normal, q, q_bias), kernels.dense(context, kv, kv_bias)
    attended = kernels.global_attention(queries, keys_values, heads)
    grad_attended, grad_proj, grad_proj_bias = kernels.dense_gradient(dout, attended, proj)
    grad_queries, grad_keys_values = kernels.global_attention_gradient(
        grad_attended, queries, keys_values, heads
    )
    grad_normal, grad_q, grad_q_bias = kernels.dense_gradient(grad_queries, normal, q)
    grad_context, grad_kv, grad_kv_bias = kernels.dense_gradient(grad_keys_values, context, kv)
    grad_layers = (grad_q, grad_q_bias, grad_kv, grad_kv_bias, grad_proj, grad_proj_bias)
    return grad_normal, grad_context, grad_layers


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
