"""Semantic FPN (Kirillov et al. 2019, "Panoptic Feature Pyramid Networks",
https://arxiv.org/abs/1901.02446).

The pyramid brings the semantics of the deep stages to the fine maps (figure 1a, after Lin et al.
2017); the head brings all its levels to the finest one's size and adds them up (section 3,
"Semantic segmentation branch", and figure 3).
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindtwins.layers import resize_bilinear
from mindtwins.segmentation.head import ConvNormReLU, Head


class Upsample(nn.Cell):
    """Twice the size, bilinear."""

    def construct(self, x: Tensor) -> Tensor:
        return resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2])


class SemanticFPNHead(Head):
    """The pyramid's four maps -> logits (B, num_classes, H_0, W_0).

    Level i is doubled i times on its way to the finest level's size, a convolution before each
    doubling; level 0 sees one convolution. Where maps were padded to whole patches, a doubled map
    can be larger than the finest and is resized to it.

    Args:
        in_channels: of the pyramid's maps.
        channels: of the head's.
        num_classes: of the logits.
        synchronize: batch norms take the statistics of all ranks.
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, synchronize: bool
    ) -> None:
        super().__init__(channels, num_classes)

        def unit(index: int) -> ConvNormReLU:
            return ConvNormReLU(channels if index else in_channels, channels, 3, synchronize)

        self.scale_heads = nn.CellList(
            [nn.SequentialCell([unit(0)])]
            + [
                nn.SequentialCell(
                    [cell for index in range(level) for cell in (unit(index), Upsample())]
                )
                for level in (1, 2, 3)
            ]
        )

    def construct(self, maps: tuple[Tensor, ...], dropout_mask: Tensor | None) -> Tensor:
        total = self.scale_heads[0](maps[0])
        for level in (1, 2, 3):
            doubled = self.scale_heads[level](maps[level])
            total = total + resize_bilinear(doubled, total.shape[1], total.shape[2])
        return self.classify(total, dropout_mask)
