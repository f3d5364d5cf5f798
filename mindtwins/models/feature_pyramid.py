"""Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection",
https://arxiv.org/abs/1612.03144): the neck that dense predictors share.

Names of cells and parameters are MMSegmentation's and MMDetection's, whose checkpoints users have.
"""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore.common.initializer import XavierUniform

from mindtwins.layers import CONVOLUTIONS, resize_nearest, subsample


class Convolution(nn.Cell):
    """A convolution with bias and nothing after it, of kernel 1 or 3."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[kernel](in_channels, out_channels, weight_init=XavierUniform())

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Cell):
    """FPN: maps (B, H_i, W_i, C_i) -> as many maps (B, H_i, W_i, channels), and coarser ones.

    Args:
        in_channels: of the maps, the finest first.
        channels: of the pyramid.
        convolved: how many coarser levels follow by a 3x3 convolution of stride 2, the first of the
            coarsest map that comes in and each next of the one before (Lin et al. 2017, "Focal Loss
            for Dense Object Detection"; as in MMDetection with no ReLU between them).
        pooled: how many follow as every other pixel of the level before.
    """

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, convolved: int = 0, pooled: int = 0
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.levels = len(in_channels)
        self.lateral_convs = nn.CellList([Convolution(width, channels, 1) for width in in_channels])
        inputs = [*[channels] * self.levels, in_channels[-1], *[channels] * convolved]
        inputs = inputs[: self.levels + convolved]
        self.fpn_convs = nn.CellList([Convolution(width, channels, 3) for width in inputs])

    def construct(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        coarsest = self.levels - 1
        top = self.lateral_convs[coarsest](maps[coarsest])
        levels: tuple[Tensor, ...] = (self.fpn_convs[coarsest](top),)
        for level in range(coarsest - 1, -1, -1):
            lateral = self.lateral_convs[level](maps[level])
            top = lateral + resize_nearest(top, lateral.shape[1], lateral.shape[2])
            levels = (self.fpn_convs[level](top), *levels)
        last = maps[coarsest]
        # By their numbers: a slice is a new list, which calls its cells' parameters otherwise.
        for level in range(self.levels, len(self.fpn_convs)):
            last = subsample(self.fpn_convs[level](last))  # stride 2
            levels = (*levels, last)
        for _ in range(self.pooled):
            levels = (*levels, subsample(levels[-1]))
        return levels
