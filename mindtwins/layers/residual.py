"""Residual branches with stochastic depth ("drop path", Huang et al. 2016).

Which branches a step drops is one small table, `keep`: per branch and sample the factor that the
branch is multiplied with, 0 if dropped and 1 / (1 - rate) if kept. Drawn on the host from
(seed, step) it makes a training step repeatable, which no random state of MindSpore's own
operators on CPU does.
"""

from __future__ import annotations

from mindspore import Tensor, ops


def add_branch(x: Tensor, branch: Tensor, keep: Tensor | None) -> Tensor:
    """`x + keep * branch` for tokens (B, H, W, C) and factors (B,), or `x + branch` without."""
    if keep is None:
        return x + branch
    return x + branch * ops.cast(ops.reshape(keep, (-1, 1, 1, 1)), branch.dtype)


def draw_keep(rates: Tensor, batch: int) -> Tensor:
    """Draw the factors (branches, batch) in the graph, for rates (branches, 1)."""
    drawn = ops.rand(rates.shape[0], batch)
    return ops.cast(drawn >= rates, rates.dtype) / (1 - rates)
