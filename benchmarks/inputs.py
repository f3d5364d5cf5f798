"""What all contestants are given, made with neither framework."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

MINDTWINS, EAGER, COMPILED, TIMM = "MindTwins", "torch eager", "torch.compile", "timm"
ONNXRUNTIME, OPENVINO = "onnxruntime", "OpenVINO f32"
PRECISIONS = ("fp32", "tf32", "fp16")
CLASSES, SEGMENT_CLASSES = 1000, 150
# The training step's learning rate, weight decay, largest norm of the gradient, and what the loss
# of an auxiliary head counts.
RATE, DECAY, CLIP, AUXILIARY_WEIGHT = 1e-6, 0.05, 5.0, 0.4
# What "amplified" weights are multiplied with, see `mindtwins.reference.weights.amplify`.
FACTOR = 3e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Work(NamedTuple):
    """What is measured.

    Attributes:
        device: "CPU", "GPU" or "Ascend".
        precision: one of `PRECISIONS`.
        model: a classifier or a segmentor.
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


def normal(*shape: int) -> np.ndarray:
    """Normal noise, float32."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def labels_of(batch: int, size: int) -> np.ndarray:
    """A class of each pixel, int32 (batch, size, size)."""
    return np.random.default_rng(1).integers(0, SEGMENT_CLASSES, (batch, size, size), np.int32)


def batch_of(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Images (batch, 3, size, size), and what they are: classes of pixels, or soft targets."""
    images = normal(work.batch, 3, work.size, work.size)
    if is_segmentor(work.model):
        return images, labels_of(work.batch, work.size)
    return images, np.eye(CLASSES, dtype=np.float32)[np.arange(work.batch) % CLASSES]


def torch_name(parameter: str) -> str:
    """What the reference calls a classifier's parameter."""
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
