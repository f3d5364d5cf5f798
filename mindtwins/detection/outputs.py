"""Detectors that show all that they compute, to compare it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindtwins.detection.detector import Detector
from mindtwins.detection.mask_rcnn import BOX_BINS, MASK_BINS, MaskRCNN, pool
from mindtwins.layers import channels_first

# Regions in parts of the image's width and height; they are of all levels.
EXAMPLES = (
    (0.05, 0.1, 0.25, 0.2),
    (0.6, 0.3, 0.65, 0.9),
    (0.1, 0.2, 0.8, 0.9),
    (0.4, 0.01, 0.99, 0.7),
    (0.0, 0.0, 1.0, 1.0),
    (-1.0, -1.0, 2.0, 2.0),
)


class DetectorOutputs(nn.Cell):
    """All maps (N, C, H, W) and head outputs of a detector, in order.

    The four of the backbone, the five of the pyramid, the logits and the deltas of the five levels;
    of a Mask R-CNN also the features, classes, boxes and masks of the example regions.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the detector's names
        self.detector = detector
        self.has_regions = isinstance(detector, MaskRCNN)

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        maps = detector.features(images)
        levels = detector.pyramid(maps)
        outputs: tuple[Tensor, ...] = ()
        for tokens in (*maps, *levels):
            outputs = (*outputs, channels_first(tokens))
        if not self.has_regions:
            logits, deltas = detector.bbox_head(levels)
            return (*outputs, *logits, *deltas)
        logits, deltas = detector.rpn_head(levels)
        rois = example_rois(*images.shape)
        features = pool(levels, rois, BOX_BINS)
        classified = detector.roi_head.bbox_head(features)
        masks = detector.roi_head.mask_head(pool(levels, rois, MASK_BINS))
        outputs = (*outputs, *logits, *deltas, channels_first(features), *classified)
        return (*outputs, channels_first(masks))


@ops.constexpr
def example_rois(images: int, channels: int, height: int, width: int) -> Tensor:
    """The example regions in each image, (images * examples, 5)."""
    boxes = np.array(EXAMPLES) * [width, height, width, height]
    numbers = np.repeat(np.arange(images), len(boxes))
    return Tensor(np.c_[numbers, np.tile(boxes, (images, 1))], ms.float32)
