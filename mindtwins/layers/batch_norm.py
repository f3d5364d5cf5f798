"""Batch normalization over the last axis, on one rank or over all of them."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation, use_kernel


class BatchNorm(nn.Cell):
    """Normalize each channel over batch and pixels: (..., C) -> (..., C), as torch.nn.BatchNorm2d.

    In training by the mean and the biased variance of the batch, which also move `moving_mean` and
    `moving_variance` (by the unbiased variance); else by those two. Parameters `gamma`, `beta`,
    `moving_mean` and `moving_variance`, each (channels,), the last two not trained.

    Args:
        channels: C.
        epsilon: added to the variance.
        momentum: torch's, the share of the new value: moving += momentum * (batch's - moving).
        synchronize: take mean and variance over the batches of all ranks, which must be of the same
            shape (torch.nn.SyncBatchNorm). Needs an initialized communication.
    """

    def __init__(
        self,
        channels: int,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.momentum = momentum
        self.gamma = Parameter(initializer("ones", (channels,), ms.float32))
        self.beta = Parameter(initializer("zeros", (channels,), ms.float32))
        self.moving_mean = Parameter(
            initializer("zeros", (channels,), ms.float32), requires_grad=False
        )
        self.moving_variance = Parameter(
            initializer("ones", (channels,), ms.float32), requires_grad=False
        )
        self.synchronize = synchronize
        self.ranks = 1
        if synchronize:
            self.ranks = ms.communication.get_group_size()
            self.sum_over_ranks = ops.AllReduce()
        self.formulation = formulation()

    def extend_repr(self) -> str:
        return (
            f"{self.gamma.shape[0]}, epsilon={self.epsilon}, momentum={self.momentum}, "
            f"ranks={self.ranks}, {self.formulation}"
        )

    def construct(self, x: Tensor) -> Tensor:
        tokens = ops.reshape(ops.cast(x, ms.float32), (-1, x.shape[-1]))
        if self.training:
            mean, variance = self.moments(tokens)
            self.update_moving(mean, variance, self.ranks * tokens.shape[0])
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = ops.rsqrt(variance + self.epsilon) * self.gamma
        if use_kernel(tokens, self.formulation):
            out = kernels.normalize(tokens, mean, scale, self.beta)
        else:
            out = (tokens - mean) * scale + self.beta
        return ops.cast(ops.reshape(out, x.shape), x.dtype)

    def moments(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) -> mean and biased variance (C,), over the tokens of all ranks."""
        # Not before a reduction over ranks, where the kernel's gradient came out wrong in a whole
        # segmentor (MindSpore 2.10: 7 times too large, though right for a few layers).
        if use_kernel(tokens, self.formulation) and not self.synchronize:
            mean, variance = kernels.moments(tokens)
        else:
            mean = ops.mean(tokens, 0)
            # About the mean: a difference of squares would lose the digits of a small variance.
            variance = ops.mean(ops.square(tokens - mean), 0)
        if self.synchronize:
            own, mean = mean, self.sum_over_ranks(mean) / self.ranks
            variance = self.sum_over_ranks(variance + ops.square(own - mean)) / self.ranks
        return mean, variance

    def update_moving(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the moving moments towards those of a batch with `count` values per channel.

        Raises:
            ValueError: for fewer than two values, of which there is no unbiased variance.
        """
        if count < 2:
            raise ValueError(
                "batch normalization in training needs more than one value per channel: "
                "use a larger batch"
            )
        unbiased = variance * (count / (count - 1))
        ops.assign(self.moving_mean, self.moving_mean + self.momentum * (mean - self.moving_mean))
        ops.assign(
            self.moving_variance,
            self.moving_variance + self.momentum * (unbiased - self.moving_variance),
        )
