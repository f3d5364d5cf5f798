"""UPerNet (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding",
https://arxiv.org/abs/1807.10221), the part that parses objects.

A pyramid pooling module (Zhao et al. 2017, "Pyramid Scene Parsing Network", section 3.2) gives the
last stage a view of the whole image; a feature pyramid carries that down to the fine maps; all
levels are fused (section 3.1 and figure 4). In training a plain convolutional head on the third
stage has a loss of its own.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindtwins.layers import adaptive_average_pool, resize_bilinear
from mindtwins.segmentation.head import ConvNormReLU, Head

POOL_BINS = (1, 2, 3, 6)


class AveragePool(nn.Cell):
    """Means over bins x bins parts: (B, H, W, C) -> (B, bins, bins, C)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def extend_repr(self) -> str:
        return f"bins={self.bins}"

    def construct(self, x: Tensor) -> Tensor:
        return adaptive_average_pool(x, self.bins)


class UPerNetHead(Head):
    """The four stages' maps -> logits (B, num_classes, H_0, W_0).

    Args:
        in_channels: of the four maps.
        channels: of the head's maps.
        num_classes: of the logits.
        synchronize: batch norms take the statistics of all ranks.
    """

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, num_classes: int, synchronize: bool
    ) -> None:
        super().__init__(channels, num_classes)
        *fine, deepest = in_channels

        def unit(inputs: int, kernel: int) -> ConvNormReLU:
            return ConvNormReLU(inputs, channels, kernel, synchronize)

        self.psp_modules = nn.CellList(
            [nn.SequentialCell([AveragePool(bins), unit(deepest, 1)]) for bins in POOL_BINS]
        )
        self.bottleneck = unit(deepest + len(POOL_BINS) * channels, 3)
        self.lateral_convs = nn.CellList([unit(width, 1) for width in fine])
        self.fpn_convs = nn.CellList([unit(channels, 3) for _ in fine])
        self.fpn_bottleneck = unit(len(in_channels) * channels, 3)

    def pool_pyramid(self, x: Tensor) -> Tensor:
        """The last stage's map beside its means over 1, 4, 9 and 36 regions, mixed."""
        _, height, width, _ = x.shape
        parts: tuple[Tensor, ...] = (x,)
        for module in self.psp_modules:
            parts = (*parts, resize_bilinear(module(x), height, width))
        return self.bottleneck(ops.concat(parts, -1))

    def construct(self, maps: tuple[Tensor, ...], dropout_mask: Tensor | None) -> Tensor:
        _, height, width, _ = maps[0].shape
        top = self.pool_pyramid(maps[3])
        levels: tuple[Tensor, ...] = (resize_bilinear(top, height, width),)
        for level in (2, 1, 0):
            lateral = self.lateral_convs[level](maps[level])
            top = lateral + resize_bilinear(top, lateral.shape[1], lateral.shape[2])
            levels = (resize_bilinear(self.fpn_convs[level](top), height, width), *levels)
        return self.classify(self.fpn_bottleneck(ops.concat(levels, -1)), dropout_mask)


class AuxiliaryHead(Head):
    """FCN (Long et al. 2015) on the third stage's map, for training: one convolution."""

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, synchronize: bool
    ) -> None:
        super().__init__(channels, num_classes)
        self.convs = nn.CellList([ConvNormReLU(in_channels, channels, 3, synchronize)])

    def construct(self, maps: tuple[Tensor, ...], dropout_mask: Tensor | None) -> Tensor:
        return self.classify(self.convs[0](maps[2]), dropout_mask)
