"""AdamW as PyTorch defines it.

`nn.AdamWeightDecay` has no bias correction, and `mindspore.experimental.optim.AdamW` is marked
subject to change, computes the corrections from fp32 powers and keeps a third moment that it does
not use. Here the moments are kept by MindSpore's Adam kernel, one fused operator on each device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindtwins.training.groups import Group

_adam = ops.Adam()
_update = ops.MultitypeFuncGraph("adamw_update")


@_update.register(*["Tensor"] * 3, *["Float"] * 4, *["Tensor"] * 4)
def _update_one(
    lr, correction, epsilon, beta1, beta2, weight_decay, lr_factor, parameter, m, v, gradient
):
    # Factors of 1 and decays of 0 are not computed: each is an operator for each parameter.
    if lr_factor != 1.0:
        lr = lr * lr_factor
    if weight_decay != 0.0:
        # By itself, as in PyTorch: ops.AdamWeightDecay, which does both, rounds otherwise.
        decayed = ops.assign(parameter, parameter * (1 - lr * weight_decay))
        gradient = ops.depend(gradient, decayed)
    # The kernel's own bias correction is switched off by beta powers of 0: it would compute
    # 1 - beta2 ** t in float32, where a small t loses digits.
    return _adam(parameter, m, v, 0.0, 0.0, lr * correction, beta1, beta2, epsilon, gradient)


def _one_minus_exp(x: Tensor) -> Tensor:
    """1 - e^-x for x > 0, exact for small x too, which MindSpore's expm1 on a CPU is not."""
    series = x * (1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5))))
    return ops.select(x < 0.125, series, -ops.expm1(-x))


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov & Hutter 2019), equal to `torch.optim.AdamW`.

    Per parameter, with rate r = lr * lr_factor and step t = 1, 2, …::

        w -= r * weight_decay * w
        m  = beta1 * m + (1 - beta1) * g
        v  = beta2 * v + (1 - beta2) * g * g
        w -= r * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    The state is in parameters named `optimizer.*`: the moments and the number of steps.

    Args:
        groups: parameters with their decay and learning-rate factor.
    """

    def __init__(
        self, groups: Sequence[Group], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__()
        self.parameters = ParameterTuple([group.parameter for group in groups])
        self.weight_decays = tuple(group.weight_decay for group in groups)
        self.lr_factors = tuple(group.lr_factor for group in groups)
        self.beta1, self.beta2 = betas
        # Of the betas as the kernel has them: else 1 - beta2 is 1.3e-5 less there than here.
        self.decay1, self.decay2 = (-math.log(np.float32(beta)) for beta in betas)
        self.eps = eps
        self.moments = self.parameters.clone("optimizer.exp_avg", "zeros")
        self.squares = self.parameters.clone("optimizer.exp_avg_sq", "zeros")
        self.step = Parameter(Tensor(0, ms.int32), "optimizer.step")
        self.map = ops.HyperMap()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        """Make one step with gradients in the order of the groups and a scalar float32 rate."""
        step = ops.cast(ops.assign_add(self.step, 1), ms.float32)
        # 1 - beta ** t
        correction1 = _one_minus_exp(step * self.decay1)
        correction2 = ops.sqrt(_one_minus_exp(step * self.decay2))
        # sqrt(v / c) + eps = (sqrt(v) + eps * sqrt(c)) / sqrt(c)
        shared = ops.partial(
            _update,
            lr,
            correction2 / correction1,
            self.eps * correction2,
            self.beta1,
            self.beta2,
        )
        self.map(
            shared,
            self.weight_decays,
            self.lr_factors,
            self.parameters,
            self.moments,
            self.squares,
            gradients,
        )
