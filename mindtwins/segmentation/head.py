"""What the heads share: convolution units, and the classifier of pixels.

Maps are channels-last (B, H, W, C), as in the backbone. Names of cells and parameters are those of
MMSegmentation, whose checkpoints users have.
"""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore.common.initializer import Normal

from mindtwins.layers import (
    CONVOLUTIONS,
    BatchNorm,
    Conv1x1,
    channels_first,
    relu,
    scale_channels,
)


class ConvNormReLU(nn.Cell):
    """Convolution, batch normalization and ReLU.

    Args:
        in_channels, out_channels: of the maps.
        kernel: 1 or 3.
        synchronize: in training, normalize by the statistics of all ranks.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, synchronize: bool) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[kernel](in_channels, out_channels, has_bias=False)
        self.bn = BatchNorm(out_channels, synchronize=synchronize)

    def construct(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class Head(nn.Cell):
    """A head computes a map of `channels` channels and classifies its pixels."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv_seg = Conv1x1(channels, num_classes, weight_init=Normal(0.01))

    def classify(self, x: Tensor, dropout_mask: Tensor | None) -> Tensor:
        """(B, H, W, channels) -> logits (B, num_classes, H, W).

        `dropout_mask` (B, channels) holds the factors of the dropout of whole channels before the
        classifier: 0 if dropped, 1 / (1 - rate) if kept. None: no dropout.
        """
        if dropout_mask is not None:
            x = scale_channels(x, dropout_mask)
        return channels_first(self.conv_seg(x))
