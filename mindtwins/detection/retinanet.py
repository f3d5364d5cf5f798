"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection",
https://arxiv.org/abs/1708.02002): every anchor of a pyramid is classified and moved (section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Normal

from mindtwins.detection.boxes import RATIOS, decode
from mindtwins.detection.detections import Detections, Geometry
from mindtwins.detection.detector import Detector, arrays
from mindtwins.detection.head import ConvReLU, per_anchor
from mindtwins.detection.postprocessing import PostProcessing, level_pairs, select
from mindtwins.layers import Conv3x3

STDS = (1.0, 1.0, 1.0, 1.0)  # of the boxes' deltas

ANCHORS = 3 * len(RATIOS)  # at a pixel: of three scales
_CONVOLUTIONS = 4
_PRIOR = 0.01  # the probability of every class at the start of a training


class RetinaHead(nn.Cell):
    """Pyramid levels (B, H, W, channels) -> logits and deltas of every anchor.

    The same two towers of convolutions see all levels (section 4, figure 3).

    Args:
        channels: of the pyramid and the towers.
        num_classes: without background: the classes' logits are for sigmoids.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

        def tower() -> nn.CellList:
            units = [ConvReLU(channels, channels, Normal(0.01)) for _ in range(_CONVOLUTIONS)]
            return nn.CellList(units)

        self.cls_convs = tower()
        self.reg_convs = tower()
        self.retina_cls = Conv3x3(
            channels,
            ANCHORS * num_classes,
            weight_init=Normal(0.01),
            bias_init=-math.log((1 - _PRIOR) / _PRIOR),
        )
        self.retina_reg = Conv3x3(channels, ANCHORS * 4, weight_init=Normal(0.01))

    def construct(self, levels: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """-> logits (B, H * W * 9, num_classes) of each level, deltas (B, H * W * 9, 4) of each."""
        logits: tuple[Tensor, ...] = ()
        deltas: tuple[Tensor, ...] = ()
        for level in levels:
            classified = moved = level
            for unit in self.cls_convs:
                classified = unit(classified)
            for unit in self.reg_convs:
                moved = unit(moved)
            logits = (*logits, per_anchor(self.retina_cls(classified), self.num_classes))
            deltas = (*deltas, per_anchor(self.retina_reg(moved), 4))
        return logits, deltas


class RetinaNet(Detector):
    """See `Detector`; `bbox_head` is the head."""

    first_stage = 1
    strides = (8, 16, 32, 64, 128)
    scales = tuple(4 * 2 ** (third / 3) for third in range(3))

    def __init__(self, *args: Any, bbox_head: RetinaHead) -> None:
        super().__init__(*args)
        self.bbox_head = bbox_head

    def construct(
        self, images: Tensor, drop_path_mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], ...]:
        """Images (N, C, H, W) -> logits of the levels and their deltas, see `RetinaHead`."""
        return self.bbox_head(self.pyramid(self.features(images, drop_path_mask)))

    def _detect(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        logits, deltas = map(arrays, self(images))
        anchors = self.anchors(*images.shape[2:])
        return [
            find_objects(
                [level[i] for level in logits],
                [level[i] for level in deltas],
                anchors,
                geometry,
                self.postprocessing,
            )
            for i, geometry in enumerate(geometries)
        ]


def find_objects(
    logits: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    geometry: Geometry,
    postprocessing: PostProcessing,
) -> Detections:
    """What is in a picture.

    Args:
        logits: (n, classes) of each level.
        deltas: (n, 4) of each level.
        anchors: (n, 4) of each level, of the padded picture.
        geometry: of the picture.
        postprocessing: whose way of choosing.
    """
    boxes, scores, labels = [], [], []
    for level, moves, places in zip(logits, deltas, anchors, strict=True):
        rows, classes, found = level_pairs(level, postprocessing)
        boxes.append(decode(places[rows], moves[rows], STDS, geometry.height, geometry.width))
        scores.append(found)
        labels.append(classes)
    candidates = postprocessing.rescale(np.concatenate(boxes), geometry.scale_factor)
    whole = postprocessing.not_empty(candidates)
    likely, of_class = np.concatenate(scores)[whole], np.concatenate(labels)[whole]
    return Detections(*select(candidates[whole], likely, of_class))
