"""Layer normalization."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from mindtwins.layers import kernels
from mindtwins.layers.device import formulation, use_kernel


class LayerNorm(nn.LayerNorm):
    """Normalize the last axis; parameters `gamma` (ones) and `beta` (zeros), each (channels,).

    `epsilon` has no default: MindSpore's is 1e-7, torch's 1e-5, and Twins uses two values.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__((channels,), epsilon=epsilon)
        self.formulation = formulation()
        self.epsilon_tensor = Tensor([epsilon], ms.float32)

    def extend_repr(self) -> str:
        return f"{self.normalized_shape[0]}, epsilon={self.epsilon}, {self.formulation}"

    def construct(self, x: Tensor) -> Tensor:
        if use_kernel(x, self.formulation):
            return kernels.layer_norm(x, self.gamma, self.beta, self.epsilon_tensor)
        return super().construct(x)
