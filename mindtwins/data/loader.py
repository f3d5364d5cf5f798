"""The training loader that all tasks share: NumPy batches that depend on their number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mindtwins.data.pipeline import BatchPipeline, report
from mindtwins.data.sampler import TrainingSampler
from mindtwins.errors import UserError


class ImageFiles(Protocol):
    """What a loader knows of a data set: `root`, for messages, and the image files."""

    root: str
    paths: list[str]

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch of b images.

    Attributes:
        images: float32 (b, 3, image_size, image_size), augmented, normalized and mixed.
        targets: what the loss compares with. Classification: float32 (b, num_classes), the soft
            targets with smoothing and mixing applied. Segmentation: int32 (b, image_size,
            image_size), each pixel's class, or 255 where there is none.
        index: int64 (b,), each image's index in the data set's `paths`.
        positions: int64 (b,), each image's position in the global batch.
        epoch: counted from 0.
        step: the optimizer step, counted from 0 over the whole run.
        micro: which of the step's micro-batches, 0 to accumulation - 1.
        labels: int32 (b,), each image's own class; None for segmentation.
    """

    images: np.ndarray
    targets: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    epoch: int
    step: int
    micro: int
    labels: np.ndarray | None = None


class TrainingLoader:
    """Yields the training batches of one rank; see `build_training_loader`.

    Attributes:
        dataset: the images.
        sampler: which image is seen when.
        skipped: unreadable images passed over so far by this rank, each counted once per epoch.
    """

    def __init__(
        self,
        dataset: ImageFiles,
        sampler: TrainingSampler,
        pipeline: BatchPipeline,
        skip_bad_images: bool,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.skipped = 0
        self._pipeline = pipeline
        self._skip_bad_images = skip_bad_images

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last, incomplete global batch is dropped."""
        return self.sampler.steps_per_epoch

    def batches(self, start_step: int, stop_step: int) -> Iterator[TrainingBatch]:
        """Yield the micro-batches of the optimizer steps in [start_step, stop_step).

        The range may begin and end anywhere, within epochs or over many of them: resuming costs no
        more than starting, and nothing stalls where epochs meet.

        Raises:
            UserError: an image cannot be read (with `skip_bad_images`: not one can be).
        """
        for row in self._pipeline(self.sampler.micro_batches(start_step, stop_step)):
            step, micro = (int(number) for number in row.pop("request"))
            epoch, slots = self.sampler.slots(step, micro)
            wanted = self.sampler.order(epoch)[slots]
            self.skipped += report(
                self.dataset.paths, wanted, row.pop("problems"), self._skip_bad_images
            )
            if row["index"].min() < 0:
                raise UserError(f"not one image of {self.dataset.root} can be read")
            positions = self.sampler.positions(micro)
            yield TrainingBatch(**row, positions=positions, epoch=epoch, step=step, micro=micro)
