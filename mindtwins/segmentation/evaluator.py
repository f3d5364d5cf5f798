"""The evaluation loop of segmentors."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from mindtwins.data.loader import EvaluationLoader
from mindtwins.execution import Inference, Model
from mindtwins.segmentation.dataset import ImageLabelFolder
from mindtwins.segmentation.inference import Window, predict_labels
from mindtwins.segmentation.loader import SegmentationBatch
from mindtwins.segmentation.metrics import ConfusionAreas, SegmentationMetrics


class SegmentationEvaluator:
    """Runs a segmentor over pairs of image and labels; a graph is compiled for each size.

    Args:
        model: segmentor; `evaluate` puts it into evaluation mode and leaves it there, which
            changes no training step that has been compiled.
        loader: batches of pictures of one size.
        flip: whether the mean is also taken over mirrored pictures.
        window: sliding windows instead of whole pictures.
        show_progress: draw a bar where there is a terminal.
        exchange: (label, bytes) -> every process's bytes, if several share the pictures.

    Attributes:
        images_per_second: see `evaluate`.
    """

    def __init__(
        self,
        model: Model,
        loader: EvaluationLoader[ImageLabelFolder, SegmentationBatch],
        flip: bool = False,
        window: Window | None = None,
        show_progress: bool = True,
        exchange: Callable[[str, bytes], list[bytes]] | None = None,
    ) -> None:
        self._inference = Inference(model)
        self._loader = loader
        self._flip = flip
        self._window = window
        self._show_progress = show_progress
        self._exchange = exchange
        self.images_per_second: float | None = None
        self._compiled_for: set[tuple[int, ...]] = set()

    @property
    def skipped(self) -> int:
        """Unreadable pairs that this process left out."""
        return self._loader.skipped

    def listings(self) -> dict[str, list]:
        """No files of its own."""
        return {}

    def evaluate(self) -> SegmentationMetrics:
        """Evaluate every picture once.

        `images_per_second` afterwards says how fast this process was, reading the files included.
        Batches for which a graph was compiled are left out; None if there were no others.

        Raises:
            UserError: a pair cannot be read, or no pixel is labeled.
        """
        self._inference.start()
        data = self._loader.dataset
        areas = ConfusionAreas(data.num_classes)
        counted, seconds = 0, 0.0
        started = time.perf_counter()
        for batch in self._loader.with_progress(self._show_progress):
            graphs = len(self._compiled_for)
            predictions = predict_labels(
                self._logits,
                batch.images,
                (batch.labels.shape[1], batch.labels.shape[2]),
                flip=self._flip,
                window=self._window,
            )
            for row in np.flatnonzero(batch.valid):
                areas.add(predictions[row], batch.labels[row], data.label_paths[batch.index[row]])
            finished = time.perf_counter()
            if len(self._compiled_for) == graphs:
                counted += int(batch.valid.sum())
                seconds += finished - started
            started = finished
        self.images_per_second = counted / seconds if counted else None
        if self._exchange is not None:
            everyones = self._exchange("areas", areas.to_bytes())
            areas = ConfusionAreas(data.num_classes)
            for there in everyones:
                areas.add_bytes(there)
        return areas.metrics()

    def _logits(self, images: np.ndarray) -> np.ndarray:
        self._compiled_for.add(images.shape)
        return self._inference(images)
