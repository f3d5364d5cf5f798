"""Sums over all elements of tensors."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation_in_graph

# A map: a loop that grows a tuple takes ten times as long to compile.
_map = ops.HyperMap()
_kernel = ops.MultitypeFuncGraph("sum_of_squares_kernel")
_plain = ops.MultitypeFuncGraph("sum_of_squares")


def sum_of_squares(tensors: tuple[Tensor, ...]) -> Tensor:
    """Sum of the squares of all elements of all tensors, a scalar; not to be differentiated."""
    if formulation_in_graph() == "kernel":
        return ops.reshape(ops.addn(_map(_kernel, tensors)), ())
    return ops.addn(_map(_plain, tensors))


@_plain.register("Tensor")
def _plain_one(tensor):
    # Not ops.L2Loss, whose CPU kernel loses the fourth digit on a million elements.
    return ops.reduce_sum(ops.square(tensor))


@_kernel.register("Tensor")
def _kernel_one(tensor):
    # A fifth of the time of the two operators.
    return kernels.sum_of_squares(ops.cast(tensor, ms.float32))
