"""What all contestants are given, made with neither framework."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindtwins.detection.assignment import PROPOSAL_RULE, PROPOSAL_SAMPLING, AnchorTask

MINDTWINS, EAGER, COMPILED, TIMM = "MindTwins", "torch eager", "torch.compile", "timm"
ONNXRUNTIME, OPENVINO = "onnxruntime", "OpenVINO f32"
PRECISIONS = ("fp32", "tf32", "fp16")
CLASSES, SEGMENT_CLASSES, OBJECT_CLASSES = 1000, 150, 80
# The training step's learning rate, weight decay, largest norm of the gradient, and what the loss
# of an auxiliary head counts.
RATE, DECAY, CLIP, AUXILIARY_WEIGHT = 1e-6, 0.05, 5.0, 0.4
# What "amplified" weights are multiplied with, see `mindtwins.reference.weights.amplify`.
FACTOR = 3e-3
OVERLAP = 0.5  # above which a box suppresses another
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Work(NamedTuple):
    """What is measured.

    Attributes:
        device: "CPU", "GPU" or "Ascend".
        precision: one of `PRECISIONS`.
        model: a classifier, a segmentor or a detector.
        what: "inference", "features", "training" or "conversion".
        size, batch: of the images.
    """

    device: str
    precision: str
    model: str
    what: str
    size: int
    batch: int


def is_segmentor(model: str) -> bool:
    """Whether a model's name is a segmentor's."""
    return model.startswith(("fpn_", "upernet_"))


def is_detector(model: str) -> bool:
    """Whether a model's name is a detector's."""
    return model.startswith(("retinanet_", "maskrcnn_"))


def normal(*shape: int) -> np.ndarray:
    """Normal noise, float32."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def labels_of(batch: int, size: int) -> np.ndarray:
    """A class of each pixel, int32 (batch, size, size)."""
    return np.random.default_rng(1).integers(0, SEGMENT_CLASSES, (batch, size, size), np.int32)


def boxes_of(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (count, 4) in a picture of 512 x 512, of sides around 64, and scores (count,)."""
    rng = np.random.default_rng(3)
    centers = rng.uniform(0, 512, (count, 2))
    halves = 32 * np.exp(rng.normal(0, 0.6, (count, 2)))
    corners = np.concatenate([centers - halves, centers + halves], 1)
    return corners.clip(0, 512).astype(np.float32), rng.random(count, np.float32)


def anchor_targets(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of RetinaNet's anchors: int32 classes (batch, n), and float32 deltas (batch, n, 4).

    One in 500 is to find an object, the others are background.
    """
    sides = [size // 4 // 2, size // 4 // 4, size // 4 // 8]
    sides += [-(-sides[-1] // 2), -(-sides[-1] // 4)]
    count = 9 * sum(side * side for side in sides)
    rng = np.random.default_rng(2)
    labels = np.full((batch, count), OBJECT_CLASSES, np.int32)
    labels[:, ::500] = rng.integers(0, OBJECT_CLASSES, labels[:, ::500].shape)
    return labels, rng.standard_normal((batch, count, 4), np.float32)


def pictured_objects(count: int, size: tuple[int, int], classes: int) -> tuple[np.ndarray, ...]:
    """Targets of a Mask R-CNN: of seven made-up objects in each of some pictures (height, width).

    As `mindtwins.detection.loader` has them: of anchors labels and deltas; and of the objects boxes
    and labels, the pictures' sizes, masks, and seeds for what is drawn later.
    """
    rng = np.random.default_rng(0)
    height, width = size
    corners = rng.uniform(0, 0.6, (count, 7, 2)) * (width, height)
    sides = rng.uniform(0.15, 0.4, (count, 7, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + sides], -1).astype(np.float32)
    labels = rng.integers(0, classes, (count, 7)).astype(np.int32)
    masks = rng.integers(0, 2, (count, 7, *size)).astype(np.uint8)
    anchors = AnchorTask((4, 8, 16, 32, 64), (8.0,), 1, PROPOSAL_RULE, PROPOSAL_SAMPLING)
    said = [
        anchors.targets(own, of_class, size, size, rng)
        for own, of_class in zip(boxes, labels, strict=True)
    ]
    of_anchors = (np.stack(kind) for kind in zip(*said, strict=True))
    return *of_anchors, boxes, labels, np.array([size] * count, np.int32), masks, np.arange(count)


def batch_of(work: Work) -> tuple[np.ndarray, ...]:
    """Images (batch, 3, size, size), and what they are.

    That is classes of pixels, soft targets, classes and deltas of anchors, or `pictured_objects`.
    """
    side = work.size
    if work.model.startswith("maskrcnn_"):
        side = -(-side // 32) * 32  # as its loader pads
    images = normal(work.batch, 3, side, side)
    if is_segmentor(work.model):
        return images, labels_of(work.batch, work.size)
    if work.model.startswith("maskrcnn_"):
        return images, *pictured_objects(work.batch, (side, side), OBJECT_CLASSES)
    if is_detector(work.model):
        return images, *anchor_targets(work.batch, work.size)
    return images, np.eye(CLASSES, dtype=np.float32)[np.arange(work.batch) % CLASSES]


def detector_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A detector's parameter, the same for all contestants: who finds as much, does as much.

    As `mindtwins.reference.weights.randomize`, but for what decides how much is found. As of a
    trained one, most anchors and regions are of no class, and proposals have sides of 10 to 160
    pixels and overlap: at 512 x 512 RetinaNet has 700 pairs of a box and a class above the
    threshold, Mask R-CNN 1,000 proposals and then 1,300 pairs, and both find 100 objects.

    Args:
        name: as the reference calls it.
        shape: its shape.
    """
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if values.ndim > 1:
        values /= np.float32(values[0].size ** 0.5)
    else:
        values = np.float32(0.1) * values + np.float32(name.endswith("weight"))
    if name == "bbox_head.retina_cls.bias":
        values -= np.float32(4.3)
    elif name == "roi_head.bbox_head.fc_cls.bias":
        values[-1] += np.float32(4)
    elif name == "rpn_head.rpn_reg.weight":
        values *= np.float32(0.3)
    elif name == "rpn_head.rpn_reg.bias":
        values.reshape(-1, 4)[:, 2:] += 1
    return values


def torch_name(parameter: str) -> str:
    """What the reference calls a parameter."""
    return parameter.replace(".gamma", ".weight").replace(".beta", ".bias")


def photographs(count: int, height: int, width: int) -> np.ndarray:
    """scikit-learn's two photographs as evaluation sees them, then the same ones shifted."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from mindtwins.classification.transforms import EvaluationTransform

    transform = EvaluationTransform(max(height, width), 0.875, MEAN, STD)
    pair = [transform(Image.fromarray(pixels)) for pixels in load_sample_images().images]
    images = [np.roll(pair[number % 2], 8 * (number // 2), -1) for number in range(count)]
    return np.ascontiguousarray(np.stack(images)[:, :, :height, :width])


def write_images(folder: Path, count: int, classes: int) -> None:
    """Write JPEGs of about 500 x 375 pixels, crops of two photographs, in a folder per class.

    If the number of classes is even, all of a class come from the same photograph.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pair = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        photograph = pair[number % 2]
        width, height = int(500 * rng.uniform(0.8, 1.2)), int(375 * rng.uniform(0.8, 1.1))
        left = rng.integers(0, photograph.width - width)
        top = rng.integers(0, photograph.height - height)
        target = folder / f"class{number % classes}"
        target.mkdir(parents=True, exist_ok=True)
        crop = photograph.crop((left, top, left + width, top + height))
        crop.save(target / f"{number}.jpg", quality=90)
