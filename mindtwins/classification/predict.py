"""The likeliest classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data.decode import read_pictures
from mindtwins.errors import UserError
from mindtwins.execution import Inference, Model


def classify(
    model: Model,
    transform: EvaluationTransform,
    files: Sequence[Path],
    names: Sequence[str],
    top_k: int,
    batch_size: int = 1,
    skip_bad_images: bool = False,
    exif_orientation: bool = False,
) -> Iterator[dict]:
    """Yield the `top_k` likeliest classes of each image file.

    Args:
        names: of the classes, by number.
        batch_size: images that the model sees at once.
        skip_bad_images: tell of unreadable images instead of raising.
        exif_orientation: turn pictures upright.

    Yields:
        For each readable image its `file`, and `classes`, `names` and `probabilities`, the
        likeliest first.

    Raises:
        UserError: a file is no readable image (with `skip_bad_images`: none is).
    """
    bar = tqdm(files, unit="image", leave=False, disable=None)
    size = transform.image_size
    rows = min(batch_size, len(files))
    inference = Inference(model)
    waiting: list[str] = []
    images = np.zeros((rows, 3, size, size), np.float32)
    try:
        for file, picture in read_pictures(bar, skip_bad_images, exif_orientation):
            transform(picture, out=images[len(waiting)])
            waiting.append(str(file))
            if len(waiting) == rows:
                yield from _predictions(inference, images, waiting, names, top_k)
                waiting = []
    except UserError:  # an image after those that wait
        yield from _predictions(inference, images, waiting, names, top_k)
        raise
    yield from _predictions(inference, images, waiting, names, top_k)


def _predictions(
    model: Inference, images: np.ndarray, files: Sequence[str], names: Sequence[str], top_k: int
) -> Iterator[dict]:
    """The predictions of a batch, one for each file; rows without a file are padding."""
    if not files:
        return
    for file, logits in zip(files, model(images), strict=False):
        yield {"file": file, **likeliest(logits, names, top_k)}


def likeliest(logits: np.ndarray, names: Sequence[str], top_k: int) -> dict:
    """The `classes`, `names` and `probabilities` of one image, the likeliest first.

    Args:
        logits: (classes,).
        names: of the classes, by number.
    """
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return {
        "classes": best.tolist(),
        "names": [names[i] for i in best],
        "probabilities": probabilities[best].tolist(),
    }


def describe(result: dict) -> str:
    """One line: the file and its classes."""
    pairs = zip(result["names"], result["probabilities"], strict=True)
    return f"{result['file']}: " + ", ".join(f"{name} {p:.3f}" for name, p in pairs)
