"""Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection",
https://arxiv.org/abs/1612.03144): the neck that dense predictors share.

Names of cells and parameters are MMSegmentation's and MMDetection's, whose checkpoints users have.
"""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore.common.initializer import XavierUniform

from mindtwins.layers import CONVOLUTIONS, resize_nearest


class Convolution(nn.Cell):
    """A convolution with bias and nothing after it, of kernel 1 or 3."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[kernel](in_channels, out_channels, weight_init=XavierUniform())

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Cell):
    """FPN: four maps (B, H_i, W_i, C_i) -> four maps (B, H_i, W_i, channels)."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.CellList([Convolution(width, channels, 1) for width in in_channels])
        self.fpn_convs = nn.CellList([Convolution(channels, channels, 3) for _ in in_channels])

    def construct(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        top = self.lateral_convs[3](maps[3])
        levels: tuple[Tensor, ...] = (self.fpn_convs[3](top),)
        for level in (2, 1, 0):
            lateral = self.lateral_convs[level](maps[level])
            top = lateral + resize_nearest(top, lateral.shape[1], lateral.shape[2])
            levels = (self.fpn_convs[level](top), *levels)
        return levels
