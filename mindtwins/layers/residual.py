"""Residual branches with stochastic depth ("drop path", Huang et al. 2016).

Which branches a step drops is one small table, `drop_path_mask`: per branch and sample the factor
that the branch is multiplied with, 0 if dropped and 1 / (1 - rate) if kept. Drawn on the host from
(seed, step) it makes a training step repeatable, which no random state of MindSpore's own
operators on CPU does.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Tensor, nn, ops

from mindtwins.layers import kernels
from mindtwins.layers.attention import CrossAttention, WindowAttention
from mindtwins.layers.convolution import PatchConv
from mindtwins.layers.device import use_kernel
from mindtwins.layers.linear import Dense, DenseGELU
from mindtwins.layers.normalization import LayerNorm


def add_branch(x: Tensor, branch: Tensor, drop_path_mask: Tensor | None) -> Tensor:
    """`x + drop_path_mask * branch` for tokens (B, H, W, C), factors (B,); None drops nothing."""
    if drop_path_mask is None:
        return x + branch
    factors = ops.broadcast_to(
        ops.reshape(drop_path_mask, (-1, 1)), (branch.shape[0], branch.shape[3])
    )
    return x + scale_channels(branch, factors)


def add_mlp(x: Tensor, norm: LayerNorm, fc1: DenseGELU, fc2: Dense) -> Tensor:
    """`x + fc2(fc1(norm(x)))` by one kernel, whose hidden maps are never in memory.

    For cells that `can_join`. Its gradient computes again what `add_branch` would have kept.
    """
    numbers = (norm.gamma, norm.beta, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return kernels.mlp(x, *numbers, norm.epsilon_tensor)


def add_mlp_to_learn(
    x: Tensor, norm: LayerNorm, fc1: DenseGELU, fc2: Dense, drop_path_mask: Tensor | None
) -> Tensor:
    """`add_branch(x, fc2(fc1(norm(x))), drop_path_mask)` by one kernel; see `add_mlp`.

    It keeps what enters GELU, so that its gradient computes no product again.
    """
    if drop_path_mask is None:
        factors = ops.ones(x.shape[:1], x.dtype)
    else:
        factors = ops.cast(ops.reshape(drop_path_mask, (-1,)), x.dtype)
    numbers = (norm.gamma, norm.beta, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return kernels.mlp_training(x, *numbers, factors, norm.epsilon_tensor)[0]


def add_window_attention(
    x: Tensor,
    norm: LayerNorm,
    qkv: Dense,
    attend: WindowAttention,
    proj: Dense,
    mask: Tensor | None,
) -> Tensor:
    """`x + proj(attend(qkv(norm(x)), mask))` by one kernel; as `add_mlp` otherwise.

    What windows have beyond the map is zeros for `qkv`, and left out by `proj`.
    """
    return kernels.window_branch(
        x,
        norm.gamma,
        norm.beta,
        qkv.weight,
        qkv.bias,
        proj.weight,
        proj.bias,
        attend.no_mask if mask is None else mask,
        attend.sizes,
        attend.window,
        norm.epsilon_tensor,
    )


def add_global_attention(
    x: Tensor, norm: LayerNorm, q: Dense, kv: Dense, attend: CrossAttention, proj: Dense
) -> Tensor:
    """`x + proj(attend(q(n), kv(n)))` of n = norm(x) by one kernel; as `add_mlp` otherwise."""
    numbers = (norm.gamma, norm.beta, q.weight, q.bias, kv.weight, kv.bias, proj.weight, proj.bias)
    return kernels.global_branch(x, *numbers, attend.sizes, norm.epsilon_tensor)


def add_subsampled_attention(
    x: Tensor,
    norm: LayerNorm,
    q: Dense,
    kv: Dense,
    attend: CrossAttention,
    proj: Dense,
    sr: PatchConv,
    sr_norm: LayerNorm,
) -> Tensor:
    """The same with kv(sr_norm(sr(n))) instead of kv(n)."""
    numbers = (norm.gamma, norm.beta, q.weight, q.bias, kv.weight, kv.bias, proj.weight, proj.bias)
    reduction = (sr.weight, sr.bias, sr_norm.gamma, sr_norm.beta)
    epsilons = (norm.epsilon_tensor, sr_norm.epsilon_tensor)
    return kernels.subsampled_branch(x, *numbers, *reduction, attend.sizes, *epsilons)


# What the kernels compute: these classes themselves, whatever stands under their names elsewhere.
_LAYERS = (LayerNorm, Dense, DenseGELU, PatchConv, WindowAttention, CrossAttention)
_HOOKS = [f"_{way}_{kind}" for way in ("forward", "backward") for kind in ("pre_hook", "hook")]


def can_join(branch: nn.Cell, cells: Mapping[nn.Cell, type[nn.Cell]]) -> bool:
    """Whether a kernel may stand for a branch and the cells that it is made of.

    They are neither hooked nor told to be fp16, and each of the latter is of its type itself, a
    layer, and computes by kernels.
    """
    own_ways = ("fp16", "bf16", *_HOOKS)
    if any(getattr(cell, way, None) for cell in (branch, *cells) for way in own_ways):
        return False
    return all(
        type(cell) is kind
        and kind in _LAYERS
        and getattr(cell, "formulation", "kernel") == "kernel"
        for cell, kind in cells.items()
    )


def scale_channels(x: Tensor, factors: Tensor) -> Tensor:
    """Tokens (B, H, W, C) times factors (B, C), which are not to be differentiated."""
    factors = ops.cast(factors, x.dtype)
    if use_kernel(x):
        return kernels.scale(x, factors)
    return x * ops.reshape(factors, (x.shape[0], 1, 1, x.shape[3]))


def draw_drop_path_mask(rates: Tensor, batch: int) -> Tensor:
    """Draw the factors (branches, batch) in the graph, for rates (branches, 1)."""
    drawn = ops.rand(rates.shape[0], batch)
    return ops.cast(drawn >= rates, rates.dtype) / (1 - rates)
