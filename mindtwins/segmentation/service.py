"""A segmentor behind HTTP."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mindtwins.errors import UserError
from mindtwins.segmentation.inference import predict_labels
from mindtwins.segmentation.overlay import draw_overlay
from mindtwins.segmentation.predict import check_views, palette_for, shares
from mindtwins.segmentation.task import Segmentation, test_window
from mindtwins.serving.service import Answer, Forward, Prepared, TooSmall


class SegmentationService:
    """See `mindtwins.serving.service.Service`."""

    pictures = ("labels", "overlay")

    def __init__(self, task: Segmentation) -> None:
        self._transform = task.preprocessing()
        self._names = task.class_names()
        self._palette = palette_for(self._names)
        self._flip = task.config.test_flip
        self._window = test_window(task.config)

    def prepare(self, picture: Image.Image) -> Prepared:
        """The views of a picture."""
        try:
            check_views("the picture", picture.width, picture.height, self._transform)
        except UserError as error:
            raise TooSmall(str(error)) from error
        return Prepared(tuple(self._transform(picture)), (picture.height, picture.width))

    def compute(self, model: Forward, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Each pixel's class, uint8 (height, width) of each picture."""
        views = [np.stack(views) for views in zip(*(p.arrays for p in batch), strict=True)]
        size = batch[0].size
        assert size is not None
        return list(predict_labels(model, views, size, flip=self._flip, window=self._window))

    def answer(self, result: np.ndarray, read: Callable[[], Image.Image]) -> Answer:
        """`shares`, and the pictures `labels` and `overlay`."""

        def overlay() -> Image.Image:
            return draw_overlay(read(), result, self._names, self._palette)

        return Answer(
            {"shares": shares(result, self._names)},
            {
                "labels": lambda: _png(Image.fromarray(result)),
                "overlay": lambda: _png(overlay()),
            },
        )

    def example(self) -> None:
        """Pictures keep their shape."""


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return stream.getvalue()
