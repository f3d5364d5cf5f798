"""The likeliest classes of images, as text, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from mindspore import Tensor, nn
from tqdm import tqdm

from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data.decode import read_picture, read_pictures
from mindtwins.files import atomic_write

PICTURES_PER_ROW = 4


def classify(
    model: nn.Cell,
    transform: EvaluationTransform,
    files: Sequence[Path],
    names: Sequence[str],
    top_k: int,
    skip_bad_images: bool = False,
) -> list[dict]:
    """The `top_k` likeliest classes of each image file.

    Args:
        names: of the classes, by number.
        skip_bad_images: tell of unreadable images instead of raising.

    Returns:
        For each readable image its `file`, and `classes`, `names` and `probabilities`, the
        likeliest first.

    Raises:
        UserError: a file is no readable image (with `skip_bad_images`: none is).
    """
    results = []
    bar = tqdm(files, unit="image", leave=False, disable=None)
    for file, picture in read_pictures(bar, skip_bad_images):
        pixels = transform(picture)[None]
        logits = model(Tensor(pixels)).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        results.append(
            {
                "file": str(file),
                "classes": best.tolist(),
                "names": [names[i] for i in best],
                "probabilities": probabilities[best].tolist(),
            }
        )
    return results


def describe(result: dict) -> str:
    """One line: the file and its classes."""
    pairs = zip(result["names"], result["probabilities"], strict=True)
    return f"{result['file']}: " + ", ".join(f"{name} {p:.3f}" for name, p in pairs)


def draw(path: str, results: Sequence[dict]) -> None:
    """A sheet of the images, each under its likeliest class, as PNG."""
    columns = min(PICTURES_PER_ROW, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, result in zip(axes.flat, results, strict=False):
        axis.imshow(read_picture(result["file"]))
        title = f"{result['names'][0]} ({result['probabilities'][0]:.2f})"
        axis.set_title(title, fontsize=9, parse_math=False)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=100)
