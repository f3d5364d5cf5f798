"""Proof of an export: what the written file computes, beside the live model, on photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindtwins.data.photographs import normalized_crops
from mindtwins.errors import UserError

# Images and sides that fill neither patches nor windows.
_ODD_SHAPES = ((3, 200, 260), (2, 97, 131))

Shape = tuple[int, int, int]  # images, height, width
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Case:
    """Images (N, C, H, W) and what the live model gives for them."""

    images: np.ndarray
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Comparison:
    """One output of a file in one runtime, for one batch.

    Attributes:
        runtime: what ran the file.
        shape: of the images.
        output: its name.
        deviation: largest difference, in standard deviations of the live model's.
        root_mean_square: of the difference, likewise.
        same_class: the share of rows (or pixels) whose highest value is in the same place.
        tolerated: the largest deviation of an exact export; None where none is claimed.
    """

    runtime: str
    shape: tuple[int, ...]
    output: str
    deviation: float
    root_mean_square: float
    same_class: float
    tolerated: float | None

    @property
    def passed(self) -> bool:
        """Whether the difference is rounding, where that is claimed; not so for NaN."""
        return self.tolerated is None or self.deviation <= self.tolerated


def choose_shapes(
    image_size: int,
    batch_size: int | None,
    any_size: bool,
    check_size: Callable[[int, int], None],
) -> list[Shape]:
    """The batches and sizes to compare at.

    Args:
        image_size: the side of the only images that the file takes, or that the model learned with.
        batch_size: the only one that it takes; None for any.
        any_size: whether it takes images of other sizes.
        check_size: raises a UserError for sides that the model refuses.

    Raises:
        UserError: the model refuses its `image_size`.
    """
    check_size(image_size, image_size)
    shapes = [(1, image_size, image_size)]
    odd = [shape for shape in _ODD_SHAPES if any_size and _is_taken(check_size, shape)]
    shapes += odd or [(3, image_size, image_size)]
    if batch_size is not None:
        shapes = [(batch_size, height, width) for _, height, width in shapes]
    return list(dict.fromkeys(shapes))


def _is_taken(check_size: Callable[[int, int], None], shape: Shape) -> bool:
    try:
        check_size(*shape[1:])
    except UserError:
        return False
    return True


def run_live(model: nn.Cell, shapes: Iterable[Shape], channels: int) -> list[Case]:
    """What a live model gives for photographs of these shapes."""
    run = run_cell(model)
    ms.set_context(mode=ms.GRAPH_MODE)
    cases = []
    for count, height, width in shapes:
        images = normalized_crops(count, channels, height, width)
        cases.append(Case(images, tuple(run(images))))
    return cases


def run_cell(cell: nn.Cell) -> Run:
    """A cell as a function of arrays."""

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = cell(Tensor(images))
        return [tensor.asnumpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    return run


def run_openvino(content: bytes) -> Run | None:
    """An ONNX file in OpenVINO, in float32; None where that is not installed.

    It has to be told: by itself it computes in bfloat16 where the processor can.
    """
    core = import_openvino()
    return None if core is None else compile_openvino(core, content, "f32")


def import_openvino() -> Any:
    """OpenVINO's core; None where that is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    return openvino.Core()


def compile_openvino(core: Any, content: bytes, precision: str) -> Run:
    """An ONNX file in OpenVINO, as a function of arrays."""
    hint = {"INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(core.read_model(content, b""), "CPU", hint)
    return lambda images: list(compiled([images]).values())


def compare(
    runtime: str,
    run: Run,
    cases: Sequence[Case],
    names: Sequence[str],
    tolerated: float | None,
) -> list[Comparison]:
    """Compare each output in each case."""
    rows = []
    for case in cases:
        found = run(case.images)
        for name, ours, live in zip(names, found, case.outputs, strict=True):
            measures = _measure(ours, live)
            rows.append(Comparison(runtime, case.images.shape, name, *measures, tolerated))
    return rows


def _measure(found: np.ndarray, live: np.ndarray) -> tuple[float, float, float]:
    if found.shape != live.shape:
        return math.inf, math.inf, 0.0
    spread = live.std() or 1.0  # a head of zeros gives the same everywhere
    difference = (found - live) / spread
    same = np.mean(found.argmax(1) == live.argmax(1))
    return float(abs(difference).max()), float(np.sqrt(np.mean(difference**2))), float(same)


def format_table(rows: Sequence[Comparison]) -> str:
    """The comparisons as a text table."""
    lines = [
        f"{'run by':<13}{'images':<20}{'output':<10}{'max abs / std':>14}{'rms / std':>11}"
        f"{'same class':>12}{'limit':>9}"
    ]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        limit = "none" if row.tolerated is None else f"{row.tolerated:.0e}"
        lines.append(
            f"{row.runtime:<13}{shape:<20}{row.output:<10}{row.deviation:>14.1e}"
            f"{row.root_mean_square:>11.1e}{100 * row.same_class:>10.2f} %{limit:>9}"
        )
    return "\n".join(lines)
