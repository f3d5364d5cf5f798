"""The evaluation loop of detectors."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mindspore import Tensor

from mindtwins.data.loader import EvaluationLoader
from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.detector import Detector
from mindtwins.detection.loader import DetectionBatch
from mindtwins.detection.metrics import KINDS, DetectionMetrics, Results


class DetectionEvaluator:
    """Runs a detector over pictures with annotations; graphs are compiled for each size.

    Args:
        detector: `evaluate` puts it into evaluation mode and leaves it there, which changes no
            training step that has been compiled.
        loader: batches of pictures of one size.
        masks: whether masks are compared, beside boxes.
        show_progress: draw a bar where there is a terminal.
        exchange: (label, bytes) -> every process's bytes, if several share the pictures.

    Attributes:
        images_per_second: see `evaluate`.
        results: the detections of the last evaluation, over all processes; None before the first.
    """

    def __init__(
        self,
        detector: Detector,
        loader: EvaluationLoader[CocoDataset, DetectionBatch],
        masks: bool = False,
        show_progress: bool = True,
        exchange: Callable[[str, bytes], list[bytes]] | None = None,
    ) -> None:
        self._detector = detector
        self._loader = loader
        self._masks = masks
        self._show_progress = show_progress
        self._exchange = exchange
        self.images_per_second: float | None = None
        self.results: Results | None = None
        self._compiled_for: set[tuple[int, ...]] = set()

    @property
    def skipped(self) -> int:
        """Unreadable pictures that this process left out."""
        return self._loader.skipped

    def listings(self) -> dict[str, list]:
        """The detections in COCO's format, which pycocotools reads: boxes, and masks apart."""
        assert self.results is not None
        kinds = ("box", "mask") if self._masks else ("box",)
        return {f".{KINDS[kind]}.json": self.results.listed(kind) for kind in kinds}

    def evaluate(self) -> DetectionMetrics:
        """Evaluate every picture once.

        `images_per_second` afterwards says how fast this process was, reading the files included.
        Batches for which graphs were compiled are left out; None if there were no others.

        Raises:
            UserError: a picture cannot be read, or there is no object in them.
        """
        self._detector.set_train(False)
        results = Results(self._loader.dataset, self._masks)
        counted, seconds = 0, 0.0
        started = time.perf_counter()
        for batch in self._loader.with_progress(self._show_progress):
            is_new = batch.images.shape not in self._compiled_for
            self._compiled_for.add(batch.images.shape)
            found = self._detector.predict(Tensor(batch.images), batch.geometries)
            for row in np.flatnonzero(batch.valid):
                results.add(int(batch.index[row]), found[row])
            finished = time.perf_counter()
            if not is_new:
                counted += int(batch.valid.sum())
                seconds += finished - started
            started = finished
        self.images_per_second = counted / seconds if counted else None
        if self._exchange is not None:
            for there in self._exchange("detections", results.to_bytes()):
                results.add_bytes(there)
        self.results = results
        return results.metrics()
