"""A Twins backbone with a head for semantic segmentation."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from mindtwins.layers import channels_first
from mindtwins.models.twins import Backbone, Dialect, checked_images
from mindtwins.segmentation.head import Head

DROPOUT_RATE = 0.1


class Segmentor(nn.Cell):
    """Backbone, neck, and the head that classifies pixels.

    Args:
        backbone: gives four maps.
        decode_head: maps -> logits.
        neck: maps -> maps, between the two.
        auxiliary_head: maps of the backbone -> logits with a loss of their own, in training.
        dialect: of the backbone.
        backbone_variant: its name, by which its weights are recognized.

    Attributes:
        in_channels: of the images.
        drop_path_rates: of the backbone's residual branches.
        dropout_channels: how many channels `dropout_mask` has factors for.
        dropout_rate: the probability to drop one.
    """

    def __init__(
        self,
        backbone: Backbone,
        decode_head: Head,
        neck: nn.Cell | None,
        auxiliary_head: Head | None,
        dialect: Dialect,
        backbone_variant: str,
    ) -> None:
        super().__init__()
        self.backbone_variant = backbone_variant
        self.backbone = backbone
        self.neck = neck
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head
        self.dialect = dialect
        self.in_channels = backbone.in_channels
        self.drop_path_rates = backbone.drop_path_rates
        self.dropped: tuple[int, ...] = (decode_head.channels,)
        if auxiliary_head is not None:
            self.dropped = (*self.dropped, auxiliary_head.channels)
        self.dropout_channels = sum(self.dropped)
        self.dropout_rate = DROPOUT_RATE

    def features(self, images: Tensor, drop_path_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) -> the backbone's four maps (N, H_i, W_i, C_i), channels-last."""
        return self.backbone.stages(images, drop_path_mask)

    def refine(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the decode head sees: the neck's maps, or the backbone's where there is no neck."""
        return maps if self.neck is None else self.neck(maps)

    def construct(
        self,
        images: Tensor,
        drop_path_mask: Tensor | None = None,
        dropout_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Images (N, C, H, W) -> logits (N, num_classes, h, w), of the first stage's size.

        In training a tuple: these logits and, with an auxiliary head, that one's.

        Args:
            images: the batch.
            drop_path_mask: (2 * blocks, N), factors of the residual branches, see
                `Backbone.stages`.
            dropout_mask: (N, dropout_channels), factors of the channels before the classifiers,
                the decode head's and then the auxiliary head's, see `Head.classify`.
        """
        dropout_masks = (None, None)
        if dropout_mask is not None:
            dropout_masks = ops.split(dropout_mask, list(self.dropped), 1)
        maps = self.features(images, drop_path_mask)
        logits = self.decode_head(self.refine(maps), dropout_masks[0])
        if not self.training:
            return logits
        if self.auxiliary_head is None:
            return (logits,)
        return logits, self.auxiliary_head(maps, dropout_masks[1])

    def check_size(self, height: int, width: int) -> None:
        """See `Backbone.check_size`."""
        self.backbone.check_size(height, width)

    def __call__(self, images: Tensor, *args: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        images = checked_images(images, self.in_channels)
        return super().__call__(images, *args)


class SegmentorOutputs(nn.Cell):
    """A segmentor that shows all its maps (N, C, H, W), to compare them.

    The four of the backbone, the four of the neck if there is one, the logits, and the auxiliary
    head's if there is one.
    """

    def __init__(self, segmentor: Segmentor) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the segmentor's names
        self.segmentor = segmentor

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        segmentor = self.segmentor
        maps = segmentor.features(images)
        refined = segmentor.refine(maps)
        shown = maps if segmentor.neck is None else (*maps, *refined)
        outputs: tuple[Tensor, ...] = ()
        for tokens in shown:
            outputs = (*outputs, channels_first(tokens))
        outputs = (*outputs, segmentor.decode_head(refined, None))
        if segmentor.auxiliary_head is not None:
            outputs = (*outputs, segmentor.auxiliary_head(maps, None))
        return outputs
