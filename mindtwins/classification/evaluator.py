"""The evaluation loop."""

from __future__ import annotations

import time
from collections.abc import Callable

from mindtwins.classification.loader import EvaluationBatch
from mindtwins.classification.metrics import ImageScores, Metrics
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import EvaluationLoader
from mindtwins.execution import Inference, Model


class Evaluator:
    """Runs a classifier over a data set; the graph is compiled at the first call.

    Args:
        model: classifier; `evaluate` puts it into evaluation mode and leaves it there, which
            changes no training step that has been compiled.
        loader: batches of one shape.
        show_progress: draw a bar where there is a terminal.
        exchange: (label, bytes) -> every process's bytes, if several share the images.
    """

    def __init__(
        self,
        model: Model,
        loader: EvaluationLoader[ImageFolder, EvaluationBatch],
        show_progress: bool = True,
        exchange: Callable[[str, bytes], list[bytes]] | None = None,
    ) -> None:
        self._inference = Inference(model)
        self._loader = loader
        self._show_progress = show_progress
        self._exchange = exchange
        self.images_per_second = 0.0

    @property
    def skipped(self) -> int:
        """Unreadable images that this process left out."""
        return self._loader.skipped

    def listings(self) -> dict[str, list]:
        """No files of its own."""
        return {}

    def evaluate(self) -> Metrics:
        """Evaluate every image once.

        `images_per_second` afterwards says how fast this process was, reading the files included,
        compiling (the first batch, if there are more) left out.
        """
        self._inference.start()
        scores = ImageScores(len(self._loader.dataset))
        started, counted = time.perf_counter(), 0
        for number, batch in enumerate(self._loader.with_progress(self._show_progress)):
            logits = self._inference(batch.images)
            valid = batch.valid
            scores.add(batch.index[valid], logits[valid], batch.labels[valid])
            if number == 0 and len(self._loader) > 1:
                started = time.perf_counter()
            else:
                counted += int(valid.sum())
        self.images_per_second = counted / (time.perf_counter() - started)
        if self._exchange is not None:
            for there in self._exchange("scores", scores.to_bytes()):
                scores.add_bytes(there)
        return scores.metrics()
