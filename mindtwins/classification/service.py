"""A classifier behind HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from PIL import Image

from mindtwins.classification.predict import likeliest
from mindtwins.classification.task import Classification
from mindtwins.config import PredictConfig
from mindtwins.serving.service import Answer, Forward, Prepared


class ClassificationService:
    """See `mindtwins.serving.service.Service`."""

    pictures = ()

    def __init__(self, task: Classification) -> None:
        self._transform = task.preprocessing()
        self._names = task.class_names()
        self._top_k = cast(PredictConfig, task.config).top_k

    def prepare(self, picture: Image.Image) -> Prepared:
        """The normalized center of a picture."""
        return Prepared((self._transform(picture),))

    def compute(self, model: Forward, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Logits, (classes,) each."""
        return list(model(np.stack([prepared.arrays[0] for prepared in batch])))

    def answer(self, result: np.ndarray, read: Callable[[], Image.Image]) -> Answer:
        """`classes`, `names` and `probabilities`, the likeliest first."""
        return Answer(likeliest(result, self._names, self._top_k))

    def example(self) -> Prepared:
        """A black picture."""
        side = self._transform.image_size
        return Prepared((np.zeros((3, side, side), np.float32),))
