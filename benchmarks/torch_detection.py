"""Detectors on PyTorch's side: the reference, with torchvision's compiled operators if they load.

Where they do not, RoIAlign and suppression are the reference's own, of many operators of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import OBJECT_CLASSES, detector_weight
from mindtwins.detection.assignment import mask_targets, sample_regions
from mindtwins.reference import detection

Outputs = tuple[Sequence[Tensor], Sequence[tuple[Tensor, Tensor]]]
Detector = detection.RetinaNetReference | detection.MaskRCNNReference

try:
    import torchvision
except (ImportError, RuntimeError):  # it is missing, or was built for another torch
    torchvision = None


def operators_in_words() -> str:
    """Whose operators the detectors have."""
    whose = "the reference's: torchvision does not load"
    if torchvision is not None:
        whose = f"torchvision {torchvision.__version__}'s"
    return f"{torch.__version__}, RoIAlign and suppression are {whose}"


def create(name: str) -> Detector:
    """A detector with the weights that all contestants have."""
    model = detection.create_detection_reference(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(detector_weight(key, tuple(parameter.shape))))
    model.operators = operators()
    return model


def operators() -> detection.Operators:
    """What detectors are tested with."""
    own = detection.Operators(paste=_paste)
    if torchvision is None:
        return own
    return own._replace(pool=_pool, nms=torchvision.ops.nms)


def predict(model: Detector, images: Tensor) -> list[dict[str, Tensor]]:
    """The objects in each image, which is as large as its picture."""
    size = tuple(images.shape[2:])
    return [model.detect(image[None], size, torch.ones(4), size) for image in images]


def loss_of(model: Detector) -> Callable[..., Tensor]:
    """From what a detector gives in training, and targets, to its loss."""
    if isinstance(model, detection.MaskRCNNReference):
        return partial(mask_rcnn_loss, model)
    return retinanet_loss


def mask_rcnn_loss(
    model: detection.MaskRCNNReference, outputs: Outputs, *targets: Tensor
) -> Tensor:
    """The loss of a batch with its regions, or of one that the model is still to propose them for.

    Args:
        targets: those of `mindtwins.detection.loss.MaskRCNNLoss`, or of the loader.
    """
    of_anchors, anchor_deltas, *rest = targets
    regions = split_regions(*rest) if len(rest) == 4 else choose_regions(model, outputs, *rest)
    return sum(model.losses(outputs, of_anchors, anchor_deltas, *regions).values(), torch.zeros(()))


def split_regions(
    rois: Tensor, labels: Tensor, deltas: Tensor, masks: Tensor
) -> tuple[list[Tensor], ...]:
    """The regions of each image, without what fills up the arrays."""
    counted = labels >= 0
    positive = (counted & (labels < OBJECT_CLASSES)).sum(1)
    return (
        [own[rows, 1:] for own, rows in zip(rois, counted, strict=True)],
        [own[rows].long() for own, rows in zip(labels, counted, strict=True)],
        [own[rows] for own, rows in zip(deltas, counted, strict=True)],
        [own[:count] for own, count in zip(masks, positive, strict=True)],
    )


def choose_regions(
    model: detection.MaskRCNNReference,
    outputs: Outputs,
    boxes: Tensor,
    labels: Tensor,
    sizes: Tensor,
    masks: Tensor,
    seeds: Tensor,
) -> tuple[list[Tensor], ...]:
    """The regions of each image among its proposals, with the same draws as MindTwins'.

    What is chosen and what is to be said of it is arrays' work, and so MindTwins' own, which holds
    neither framework; unlike there, the pass that is differentiated gives the proposals too.
    """
    chosen = []
    for image, seed in enumerate(seeds.tolist()):
        with torch.no_grad():
            proposed = model.propose(*outputs, sizes[image].tolist(), image, per_level=2000)
        found = sample_regions(
            proposed.numpy(),
            boxes[image].numpy(),
            labels[image].numpy(),
            OBJECT_CLASSES,
            (0.1, 0.1, 0.2, 0.2),
            np.random.Generator(np.random.Philox(seed)).permutation,
        )
        positive = found.boxes[: len(found.numbers)]
        drawn = mask_targets(positive, found.numbers, masks[image].numpy())
        arrays = (found.boxes, found.labels.astype(np.int64), found.deltas, drawn)
        chosen.append([torch.from_numpy(array) for array in arrays])
    return tuple(map(list, zip(*chosen, strict=True)))


def retinanet_loss(outputs: Sequence[tuple[Tensor, Tensor]], *targets: Tensor) -> Tensor:
    """The sum of `mindtwins.reference.detection.retinanet_losses`."""
    return sum(detection.retinanet_losses(outputs, *targets).values(), torch.zeros(()))


def _pool(levels: Sequence[Tensor], image: int, boxes: Tensor, bins: int) -> Tensor:
    """As the reference's, a call for each level."""
    chosen = detection.levels_of(boxes)
    features = levels[0].new_zeros(len(boxes), levels[0].shape[1], bins, bins)
    for number, level in enumerate(levels[:4]):
        rows = (chosen == number).nonzero()[:, 0]
        if len(rows):
            picture, scale = level[image : image + 1], 1 / (4 * 2**number)
            features[rows] = torchvision.ops.roi_align(
                picture, [boxes[rows]], bins, scale, 0, aligned=True
            )
    return features


def _paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """As the reference, but it looks only at the pixels around the box: MMDetection on a CPU."""
    pasted = torch.zeros(height, width, dtype=torch.bool)
    left, top = (max(int(corner) - 1, 0) for corner in box[:2].floor())
    right, bottom = (int(corner) + 1 for corner in box[2:].ceil())
    right, bottom = min(right, width), min(bottom, height)
    if left < right and top < bottom:
        moved = box - torch.tensor([left, top, left, top])
        near = detection.paste(mask, moved, bottom - top, right - left)
        pasted[top:bottom, left:right] = near
    return pasted
