"""What the heads of detectors share. Names of cells and parameters are MMDetection's."""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Initializer

from mindtwins.layers import Conv3x3, relu


class ConvReLU(nn.Cell):
    """3x3 convolution with bias and ReLU, on channels-last maps.

    Args:
        in_channels, out_channels: of the maps.
        weight_init: of the convolution; None for its own.
    """

    def __init__(
        self, in_channels: int, out_channels: int, weight_init: Initializer | None = None
    ) -> None:
        super().__init__()
        self.conv = Conv3x3(in_channels, out_channels, weight_init=weight_init)

    def construct(self, x: Tensor) -> Tensor:
        return relu(self.conv(x))


def per_anchor(x: Tensor, values: int) -> Tensor:
    """(B, H, W, anchors * values) -> (B, H * W * anchors, values)."""
    return ops.reshape(x, (x.shape[0], -1, values))
