"""A file that prepares pictures itself: its pixels beside Pillow's, its outputs beside the model's.

What comes out of the preparation is not always what Pillow gives, by one level of 255, seldom two.
So both parts are held to their own: the pixels to Pillow's, and the outputs to those of the live
model for the file's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mindspore import nn
from PIL import Image

from mindtwins.console import tell
from mindtwins.data.photographs import photograph_crops
from mindtwins.errors import UserError
from mindtwins.export.check import Case, Comparison, compare, run_cell
from mindtwins.export.graph import Graph
from mindtwins.export.onnx_file import ANTIALIASING_OPSET, build_model
from mindtwins.export.onnx_model import OnnxModel, import_onnxruntime
from mindtwins.export.order import Order

# Height and width of the pictures: larger and smaller than what models see, upright and not.
SIZES = ((427, 640), (400, 300), (97, 131), (263, 396))
FEWEST_EQUAL, MOST_LEVELS = 0.995, 2


def compare_pictures(
    order: Order, live: nn.Cell, path: Path, names: Sequence[str]
) -> list[Comparison]:
    """Compare the file's outputs for whole pictures with the live model's.

    Raises:
        UserError: the file's pixels are not Pillow's up to a few that are off by one.
    """
    prepare, model, run = _preparation(order), OnnxModel(path), run_cell(live)
    preprocessing = order.use["preprocessing"]
    one_level = 1 / (255 * np.reshape(preprocessing["std"], (1, 3, 1, 1)))
    rows: list[Comparison] = []
    equal = []
    for height, width in SIZES:
        picture = photograph_crops(1, height, width)
        pixels = prepare(picture)
        wanted = order.transform(Image.fromarray(picture[0]))[None]
        equal.append(float(np.mean(pixels == wanted)))
        if (
            equal[-1] < FEWEST_EQUAL
            or (np.abs(pixels - wanted) > (MOST_LEVELS + 0.01) * one_level).any()
        ):
            raise UserError(
                f"the file prepares a picture of {width} x {height} pixels otherwise than Pillow"
            )
        ours = [Case(picture, tuple(run(pixels)))]
        rows += compare("onnxruntime", model.run, ours, names, order.kind.tolerated)
        theirs = [Case(picture, tuple(run(wanted)))]
        rows += compare("with Pillow", model.run, theirs, names, None)
    tell(
        f"{100 * min(equal):.2f} to {100 * max(equal):.2f} % of the file's pixels are as Pillow has"
        f" them, the others are off by up to {MOST_LEVELS} levels of 255"
    )
    return rows


def _preparation(order: Order) -> Callable[[np.ndarray], np.ndarray]:
    """The file's first part alone: a picture to the model's input."""
    graph = Graph({})
    prepared = order.kind.prepare(graph, order.use["preprocessing"])
    graph.output(prepared.value, "pixels", 3, prepared.height, prepared.width)
    content = build_model(graph, ANTIALIASING_OPSET).SerializeToString()
    session = import_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])
    (image,) = graph.inputs
    return lambda picture: session.run(None, {image.name: picture})[0]
