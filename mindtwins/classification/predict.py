"""The likeliest classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data.decode import read_pictures


def classify(
    model: nn.Cell,
    transform: EvaluationTransform,
    files: Sequence[Path],
    names: Sequence[str],
    top_k: int,
    skip_bad_images: bool = False,
    exif_orientation: bool = False,
) -> Iterator[dict]:
    """Yield the `top_k` likeliest classes of each image file.

    Args:
        names: of the classes, by number.
        skip_bad_images: tell of unreadable images instead of raising.
        exif_orientation: turn pictures upright.

    Yields:
        For each readable image its `file`, and `classes`, `names` and `probabilities`, the
        likeliest first.

    Raises:
        UserError: a file is no readable image (with `skip_bad_images`: none is).
    """
    bar = tqdm(files, unit="image", leave=False, disable=None)
    for file, picture in read_pictures(bar, skip_bad_images, exif_orientation):
        pixels = transform(picture)[None]
        logits = model(Tensor(pixels)).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        yield {
            "file": str(file),
            "classes": best.tolist(),
            "names": [names[i] for i in best],
            "probabilities": probabilities[best].tolist(),
        }


def describe(result: dict) -> str:
    """One line: the file and its classes."""
    pairs = zip(result["names"], result["probabilities"], strict=True)
    return f"{result['file']}: " + ", ".join(f"{name} {p:.3f}" for name, p in pairs)
