"""Detectors on PyTorch's side: the reference, with torchvision's compiled operators if they load.

Where they do not, RoIAlign and suppression are the reference's own, of many operators of torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.inputs import detector_weight
from mindtwins.reference import detection

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
