"""What a server asks of a task; each task's folder has its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mindtwins.execution import Inference, Model

# Images (n, 3, h, w) to the model's output.
Forward = Callable[[np.ndarray], np.ndarray]

# Compiled graphs that are kept. Each takes memory, and pictures come in any shape.
COMPILED_AT_MOST = 32


class TooSmall(Exception):
    """A picture is smaller than the model takes; the message says so in one sentence."""


@dataclass(frozen=True)
class Prepared:
    """What the model sees of a picture.

    Attributes:
        arrays: float32 (3, h, w) each.
        size: (height, width) of a result that has those of the picture.
    """

    arrays: tuple[np.ndarray, ...]
    size: tuple[int, int] | None = None

    @property
    def kind(self) -> Hashable:
        """Pictures of one kind may be computed together."""
        return (self.size, *(array.shape for array in self.arrays))


@dataclass(frozen=True)
class Answer:
    """What was found in a picture.

    Attributes:
        values: what JSON can hold.
        pictures: PNG files by name, each made when it is asked for.
    """

    values: dict[str, Any]
    pictures: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


class Service(Protocol):
    """From pictures to answers. Only `compute` runs the model; the rest runs in any thread.

    Attributes:
        pictures: the names of the pictures of an answer.
    """

    @property
    def pictures(self) -> tuple[str, ...]: ...

    def __init__(self, task: Any) -> None:
        """Take a task, which knows recipe and checkpoint."""

    def prepare(self, picture: Image.Image) -> Prepared:
        """What the model sees of an RGB picture.

        Raises:
            TooSmall: the model takes larger ones only.
        """

    def compute(self, model: Forward, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """The model's result for each picture of a batch of one kind."""

    def answer(self, result: np.ndarray, read: Callable[[], Image.Image]) -> Answer:
        """What a result means; `read` gives the picture again."""

    def example(self) -> Prepared | None:
        """Something of the shape that all pictures have; None where they have various."""


Services = Mapping[str, Callable[[Any], Service]]


class Compiled:
    """A model as a function of arrays that keeps the graphs of the shapes seen last.

    MindSpore compiles a graph for each shape, and a graph that is not needed any more is memory.
    """

    def __init__(self, model: Model, at_most: int = COMPILED_AT_MOST) -> None:
        self._model = model
        self._at_most = at_most
        self._graphs: OrderedDict[tuple[int, ...], Inference] = OrderedDict()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        graph = self._graphs.pop(images.shape, None)
        if graph is None:
            graph = Inference(self._model)
            graph.start()
        self._graphs[images.shape] = graph
        if len(self._graphs) > self._at_most:
            self._graphs.popitem(last=False)
        return graph(images)
