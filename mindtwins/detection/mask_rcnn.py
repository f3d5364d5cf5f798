"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870) on a feature pyramid (Lin et al.
2017, https://arxiv.org/abs/1612.03144, section 4): proposals, their classes and boxes, their masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal, XavierUniform

from mindtwins.detection.boxes import RATIOS, decode
from mindtwins.detection.detections import Detections, Geometry
from mindtwins.detection.detector import Detector, arrays
from mindtwins.detection.head import ConvReLU, per_anchor
from mindtwins.detection.masks import paste
from mindtwins.detection.postprocessing import (
    MOST_DETECTIONS,
    SCORE_THRESHOLD,
    PostProcessing,
    proposals,
    select,
    sigmoid,
    softmax,
)
from mindtwins.layers import (
    Conv1x1,
    Conv3x3,
    Dense,
    Float32Cell,
    TransposedConv2x2,
    channels_first,
    relu,
    roi_align,
)

STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of proposals
PROPOSALS = 1000  # of a picture; in evaluation also of a level before suppression
PROPOSAL_OVERLAP = 0.7

_ROI_STRIDES = (4, 8, 16, 32)  # of the levels that regions are taken from
_FINEST = 56.0  # below twice this side, in pixels, a region is taken from the finest level
# From these on it is from the next level: floor(log2(side / 56 + 1e-6)) as float32 rounds it, which
# is 3 already just below 8.
_NEXT_LEVEL = (2.0, 4.0, float(np.nextafter(np.float32(8), np.float32(0))))
BOX_BINS, MASK_BINS = 7, 14
_CONVOLUTIONS = 4


class RPNHead(nn.Cell):
    """Region proposals (Ren et al. 2015): one convolution, then each anchor's object and box."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        anchors = len(RATIOS)
        self.rpn_conv = Conv3x3(channels, channels, weight_init=Normal(0.01))
        self.rpn_cls = Conv1x1(channels, anchors, weight_init=Normal(0.01))
        self.rpn_reg = Conv1x1(channels, 4 * anchors, weight_init=Normal(0.01))

    def construct(self, levels: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """Levels (B, H, W, C) -> logits (B, H * W * 3) of each, deltas (B, H * W * 3, 4) of each"""
        logits: tuple[Tensor, ...] = ()
        deltas: tuple[Tensor, ...] = ()
        for level in levels:
            x = relu(self.rpn_conv(level))
            logits = (*logits, ops.reshape(self.rpn_cls(x), (x.shape[0], -1)))
            deltas = (*deltas, per_anchor(self.rpn_reg(x), 4))
        return logits, deltas


def pool(levels: tuple[Tensor, ...], rois: Tensor, bins: int) -> Tensor:
    """Regions (n, 5) of the pyramid -> their features (n, bins, bins, channels).

    Args:
        levels: of the pyramid, of which the first four are used.
        rois: a row is (image, x1, y1, x2, y2), in pixels of the images; of image -1 all is zeros.
        bins: along each side.
    """
    image, x1, y1, x2, y2 = ops.split(rois, 1, 1)
    side = ops.sqrt((x2 - x1) * (y2 - y1)) / _FINEST + 1e-6
    level = ops.zeros_like(side)
    scale = ops.ones_like(side) / _ROI_STRIDES[0]
    for start in _NEXT_LEVEL:
        is_larger = side >= start
        level = level + ops.cast(is_larger, ms.float32)
        scale = ops.select(is_larger, scale / 2, scale)
    corners = (x1 * scale, y1 * scale, x2 * scale, y2 * scale)
    return roi_align(levels[: len(_ROI_STRIDES)], ops.concat((image, level, *corners), 1), bins)


class RegionPooling(Float32Cell):
    """`pool` as a cell, in float32 at every level of precision.

    In fp16 corners would move by up to half a pixel, and areas from 256 x 256 on are infinite.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def construct(self, rois: Tensor, *levels: Tensor) -> Tensor:
        """See `pool`. Levels one by one: for a new tuple of them MindSpore compiles a new graph."""
        return pool(levels, rois, self.bins)


class BoxHead(nn.Cell):
    """Features of regions -> classes and boxes, by two layers that both share.

    Args:
        channels: of the pyramid.
        hidden: of the two layers.
        num_classes: without the background, which is the class after the last.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        inputs = channels * BOX_BINS**2
        self.shared_fcs = nn.CellList(
            [Dense(inputs, hidden, XavierUniform()), Dense(hidden, hidden, XavierUniform())]
        )
        self.fc_cls = Dense(hidden, num_classes + 1, Normal(0.01))
        self.fc_reg = Dense(hidden, 4 * num_classes, Normal(0.001))

    def construct(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 7, 7, channels) -> logits (n, num_classes + 1), deltas (n, num_classes * 4)."""
        x = ops.reshape(channels_first(features), (features.shape[0], -1))
        for layer in self.shared_fcs:
            x = relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Cell):
    """Features of regions -> a mask for each class (He et al., figure 4, right)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.CellList([ConvReLU(channels, channels) for _ in range(_CONVOLUTIONS)])
        self.upsample = TransposedConv2x2(channels, channels)
        self.conv_logits = Conv1x1(
            channels, num_classes, weight_init=Normal(math.sqrt(2 / num_classes))
        )

    def construct(self, features: Tensor) -> Tensor:
        """(n, 14, 14, channels) -> logits (n, 28, 28, num_classes)."""
        x = features
        for unit in self.convs:
            x = unit(x)
        return self.conv_logits(relu(self.upsample(x)))


class RoIHead(nn.Cell):
    """What is done with each region; a name that the weights have in common."""

    def __init__(self, bbox_head: BoxHead, mask_head: MaskHead) -> None:
        super().__init__()
        self.bbox_head = bbox_head
        self.mask_head = mask_head


class MaskRCNN(Detector):
    """See `Detector`; `rpn_head` proposes regions and `roi_head` says what is in them.

    Attributes:
        box_pooling, mask_pooling: what the two heads see of a region.
    """

    strides = (4, 8, 16, 32, 64)
    scales = (8.0,)

    def __init__(self, *args: Any, rpn_head: RPNHead, roi_head: RoIHead) -> None:
        super().__init__(*args)
        self.rpn_head = rpn_head
        self.roi_head = roi_head
        self.box_pooling = RegionPooling(BOX_BINS)
        self.mask_pooling = RegionPooling(MASK_BINS)

    def construct(
        self, images: Tensor, drop_path_mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Images (N, C, H, W) -> levels of the pyramid, and the proposals' logits and deltas."""
        levels = self.pyramid(self.features(images, drop_path_mask))
        logits, deltas = self.rpn_head(levels)
        return levels, logits, deltas

    def _detect(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        levels, logits, deltas = self(images)
        sizes = [(geometry.height, geometry.width) for geometry in geometries]
        regions = self.propose(arrays(logits), arrays(deltas), images.shape[2:], sizes)
        features = self.box_pooling(Tensor(as_rois(regions, PROPOSALS)), *levels)
        classes, moves = arrays(self.roi_head.bbox_head(features))
        found = []
        for i, (own, geometry) in enumerate(zip(regions, geometries, strict=True)):
            rows = slice(i * PROPOSALS, i * PROPOSALS + len(own))
            found.append(
                find_objects(own, classes[rows], moves[rows], geometry, self.postprocessing)
            )
        rois = as_rois([boxes for boxes, _ in found], MOST_DETECTIONS)
        (masks,) = arrays([self.roi_head.mask_head(self.mask_pooling(Tensor(rois), *levels))])
        masks = masks.reshape(len(found), MOST_DETECTIONS, *masks.shape[1:])
        detections = []
        for (boxes, objects), drawn, geometry in zip(found, masks, geometries, strict=True):
            of_class = drawn[np.arange(len(boxes)), :, :, objects.labels]
            pasted = paste(
                sigmoid(of_class),
                # As there, where they are scaled and scaled back: that changes a last bit.
                boxes / geometry.scale_factor,
                geometry.original_height,
                geometry.original_width,
            )
            detections.append(replace(objects, masks=pasted))
        return detections

    def propose(
        self,
        logits: Sequence[np.ndarray],
        deltas: Sequence[np.ndarray],
        size: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        per_level: int = PROPOSALS,
    ) -> list[np.ndarray]:
        """The proposals (n, 4) of each picture, best first, from what `construct` gives.

        Args:
            logits: (B, anchors) of each level.
            deltas: (B, anchors, 4) of each level.
            size: the (height, width) of the images.
            sizes: that of each picture, without padding.
            per_level: how many candidates a level may have, before suppression.
        """
        anchors = self.anchors(*size)
        return [
            proposals(
                [level[i] for level in logits],
                [level[i] for level in deltas],
                anchors,
                height,
                width,
                self.postprocessing,
                per_level=per_level,
                overlap=PROPOSAL_OVERLAP,
                most=PROPOSALS,
            )[0]
            for i, (height, width) in enumerate(sizes)
        ]


def find_objects(
    regions: np.ndarray,
    logits: np.ndarray,
    deltas: np.ndarray,
    geometry: Geometry,
    postprocessing: PostProcessing,
) -> tuple[np.ndarray, Detections]:
    """What is in a picture's regions.

    Args:
        regions: (n, 4), in pixels of the network's input.
        logits: (n, classes + 1), the background last.
        deltas: (n, classes * 4).
        geometry: of the picture.
        postprocessing: whose way of choosing.

    Returns:
        Their boxes in pixels of the network's input, and the objects, still without masks.
    """
    scores = softmax(logits)[:, :-1]
    rows, classes = np.nonzero(scores > SCORE_THRESHOLD)
    moves = deltas.reshape(len(regions), scores.shape[1], 4)[rows, classes]
    boxes = decode(regions[rows], moves, STDS, geometry.height, geometry.width)
    likely = scores[rows, classes]
    factor = geometry.scale_factor
    if postprocessing.suppression == "network":
        boxes, *rest = select(boxes, likely, classes)
        return boxes, Detections(boxes / factor, *rest)
    boxes, *rest = select(boxes / factor, likely, classes)
    return boxes * factor, Detections(boxes, *rest)


def as_rois(boxes: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Each picture's boxes (n, 4) as `count` regions with its number, the rest with -1.

    Returns:
        float32 (pictures * count, 5), see `pool`.
    """
    rois = np.zeros((len(boxes), count, 5), np.float32)
    rois[:, :, 0] = -1
    for number, (own, rows) in enumerate(zip(boxes, rois, strict=True)):
        rows[: len(own), 0] = number
        rows[: len(own), 1:] = own
    return rois.reshape(-1, 5)
