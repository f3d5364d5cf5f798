"""The training losses of detectors, in float32, as MMDetection 2.8.0 computes them.

Labels are those of `mindtwins.detection.assignment`: a class, the number of classes for what is no
object, or -1 for what does not count, be it undecided, not sampled, or there to fill up a batch.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindtwins.detection.mask_rcnn import MaskRCNN

# Of the focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection"): the weight of what
# is an object, against the rest's, and the power of what is missing to certainty.
ALPHA, GAMMA = 0.25, 2.0


class RetinaNetLoss(nn.Cell):
    """Focal loss of the classes and the deltas' distances, each by the number of objects' anchors.

    Args:
        num_classes: without the background.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def construct(
        self, outputs: tuple[tuple[Tensor, ...], ...], labels: Tensor, expected: Tensor
    ) -> Tensor:
        """Of a batch.

        Args:
            outputs: logits (B, n_i, classes) and deltas (B, n_i, 4) of each level.
            labels: int32 (B, n), of all anchors.
            expected: their deltas, (B, n, 4).

        Returns:
            A float32 scalar.
        """
        logits, deltas = ops.concat(outputs[0], 1), ops.concat(outputs[1], 1)
        classes, boxes = retinanet_losses(logits, deltas, labels, expected, self.num_classes)
        return classes + boxes


def retinanet_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, expected: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The two parts of `RetinaNetLoss`, of all anchors: (B, n, classes), (B, n, 4) ..."""
    has_object = _is_object(labels, num_classes)
    positives = _at_least_one_each(has_object)
    is_class = _expand(labels) == ops.arange(num_classes)
    # With the sign turned where the class is right, the same formula serves both.
    against = _turned(ops.cast(logits, ms.float32), is_class)
    weight = ops.select(
        is_class, ALPHA * ops.ones_like(against), (1 - ALPHA) * ops.ones_like(against)
    )
    focal = weight * ops.sigmoid(against) ** GAMMA * ops.softplus(against)
    classes = ops.sum(focal * _expand(_counts(labels))) / positives
    return classes, _distance(deltas, expected, has_object) / positives


class MaskRCNNLoss(nn.Cell):
    """The losses of the proposals, and of the classes, boxes and masks of regions; their sum.

    Args:
        model: whose heads say what is in the regions.
    """

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the model's names
        self.num_classes = model.num_classes
        self.box_pooling, self.mask_pooling = model.box_pooling, model.mask_pooling
        self.heads = model.roi_head

    def construct(
        self,
        outputs: tuple[tuple[Tensor, ...], ...],
        anchor_labels: Tensor,
        anchor_deltas: Tensor,
        rois: Tensor,
        labels: Tensor,
        deltas: Tensor,
        masks: Tensor,
    ) -> Tensor:
        """Of a batch, whose pictures have r regions, those of objects first.

        Args:
            outputs: of `MaskRCNN`: levels, logits and deltas.
            anchor_labels: int32 (B, n): 0 for an object, 1 for none.
            anchor_deltas: to the objects, (B, n, 4).
            rois: (B, r, 5); see `mindtwins.detection.mask_rcnn.pool`.
            labels: int32 (B, r), of the regions.
            deltas: to the objects, (B, r, 4).
            masks: uint8 (B, m, 28, 28), of the first m regions: 1 where the object is.

        Returns:
            A float32 scalar.
        """
        levels, logits, moves = outputs
        logits, moves = ops.concat(logits, 1), ops.concat(moves, 1)
        found, shifted = proposal_losses(logits, moves, anchor_labels, anchor_deltas)
        features = self.box_pooling(ops.reshape(rois, (-1, 5)), *levels)
        logits, moves = self.heads.bbox_head(features)
        labels_of_all, expected = ops.reshape(labels, (-1,)), ops.reshape(deltas, (-1, 4))
        classes, boxes = region_losses(logits, moves, labels_of_all, expected, self.num_classes)
        batch, most, height, width = masks.shape
        features = self.mask_pooling(ops.reshape(rois[:, :most], (-1, 5)), *levels)
        drawn = self.heads.mask_head(features)
        own = ops.reshape(labels[:, :most], (-1,))
        own = ops.select(own < self.num_classes, own, ops.zeros_like(own) - 1)
        pixels = mask_loss(drawn, own, ops.reshape(masks, (batch * most, height, width)))
        return found + shifted + classes + boxes + pixels


def proposal_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, expected: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and the deltas' distances, each by the number of sampled anchors.

    Args:
        logits: (B, n), of being an object.
        deltas: (B, n, 4).
        labels: int32 (B, n): 0 for an object, 1 for none.
        expected: the deltas to the objects, (B, n, 4).
    """
    has_object = _is_object(labels, 1)
    sampled = _at_least_one_each(has_object) + _at_least_one_each(ops.cast(labels == 1, ms.float32))
    entropy = ops.softplus(_turned(ops.cast(logits, ms.float32), labels == 0))
    classes = ops.sum(entropy * _counts(labels)) / sampled
    return classes, _distance(deltas, expected, has_object) / sampled


def region_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, expected: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Cross entropy and the deltas' distances of the regions' classes, each by the regions.

    Args:
        logits: (n, classes + 1).
        deltas: of each class, (n, classes * 4).
        labels: int32 (n,).
        expected: the deltas to the objects, (n, 4).
        num_classes: without the background.
    """
    has_object = _is_object(labels, num_classes)
    regions = ops.maximum(ops.sum(_counts(labels)), 1.0)
    likelihood = ops.log_softmax(ops.cast(logits, ms.float32), -1)
    is_label = ops.cast(_expand(labels) == ops.arange(num_classes + 1), ms.float32)
    classes = -ops.sum(likelihood * is_label) / regions
    by_class = ops.reshape(ops.cast(deltas, ms.float32), (-1, num_classes, 4))
    own = ops.sum(by_class * _expand(is_label[:, :num_classes]), 1)
    return classes, _distance(own, expected, has_object) / regions


def mask_loss(logits: Tensor, labels: Tensor, expected: Tensor) -> Tensor:
    """Mean binary cross entropy of the masks of the regions' classes; 0 if there are no regions.

    Args:
        logits: (n, 28, 28, classes).
        labels: int32 (n,).
        expected: 0 or 1, (n, 28, 28).
    """
    _, height, width, num_classes = logits.shape
    is_label = ops.cast(_expand(labels) == ops.arange(num_classes), ms.float32)
    own = ops.sum(ops.cast(logits, ms.float32) * ops.reshape(is_label, (-1, 1, 1, num_classes)), -1)
    entropy = ops.softplus(_turned(own, expected > 0))
    counted = ops.reshape(_counts(labels), (-1, 1, 1))
    pixels = ops.maximum(ops.sum(counted), 1.0) * (height * width)
    return ops.sum(entropy * counted) / pixels


def _expand(x: Tensor) -> Tensor:
    return ops.expand_dims(x, -1)


def _counts(labels: Tensor) -> Tensor:
    """1 where a label counts, else 0."""
    return ops.cast(labels >= 0, ms.float32)


def _is_object(labels: Tensor, background: int) -> Tensor:
    """1 where a label is a class, else 0."""
    return ops.cast(ops.logical_and(labels >= 0, labels < background), ms.float32)


def _at_least_one_each(flags: Tensor) -> Tensor:
    """How many of each picture's flags (B, n) are 1, or 1 if none is; in all."""
    return ops.sum(ops.maximum(ops.sum(flags, 1), 1.0))


def _turned(logits: Tensor, is_right: Tensor) -> Tensor:
    """Logits of the opposite of what is right: the softplus of these is the cross entropy."""
    return ops.select(is_right, -logits, logits)


def _distance(deltas: Tensor, expected: Tensor, has_object: Tensor) -> Tensor:
    """The sum of all objects' absolute differences."""
    difference = ops.abs(ops.cast(deltas, ms.float32) - expected)
    return ops.sum(difference * _expand(has_object))
