"""The loaders that all tasks share: NumPy batches that depend on their number alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from mindtwins.data.pipeline import BatchFunction, BatchPipeline, report, worker_count
from mindtwins.data.sampler import TrainingSampler
from mindtwins.errors import UserError


class ImageFiles(Protocol):
    """What a loader knows of a data set: `root`, for messages, and the image files."""

    root: str
    paths: list[str]

    def __len__(self) -> int: ...


Files = TypeVar("Files", bound=ImageFiles)
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class LoaderOptions:
    """What every loader is told, whatever it loads.

    Attributes:
        rank: of this process.
        world: number of processes.
        num_parallel_workers: capped at the machine's cores, with a notice.
        python_multiprocessing: whether the workers are processes instead of threads.
        skip_bad_images: whether an unreadable image is logged, counted and passed over, instead of
            ending the run; in training the next readable one in the epoch's order replaces it.
    """

    rank: int = 0
    world: int = 1
    num_parallel_workers: int = 2
    python_multiprocessing: bool = False
    skip_bad_images: bool = False

    def own(self, batches: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """This rank's stretch of all ranks' batches; their numbers may differ, by one."""
        first, end = (number * len(batches) // self.world for number in (self.rank, self.rank + 1))
        return batches[first:end]

    def pipeline(self, load_batch: BatchFunction) -> BatchPipeline:
        """Let the workers compute batches ahead."""
        workers = worker_count(self.num_parallel_workers)
        return BatchPipeline(load_batch, workers, self.python_multiprocessing)


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch of b images.

    Attributes:
        images: float32 (b, 3, image_size, image_size), augmented and normalized.
        targets: what the loss compares with: an array, or a tuple of arrays of any shapes whose
            first axis is b.
        index: int64 (b,), each image's index in the data set's `paths`.
        positions: int64 (b,), each image's position in the global batch.
        epoch: counted from 0.
        step: the optimizer step, counted from 0 over the whole run.
        micro: which of the step's micro-batches, 0 to accumulation - 1.
    """

    images: np.ndarray
    targets: np.ndarray | tuple[np.ndarray, ...]
    index: np.ndarray
    positions: np.ndarray
    epoch: int
    step: int
    micro: int


class TrainingLoader:
    """Yields the training batches of one rank.

    Args:
        dataset: the images.
        sampler: which image is seen when.
        pipeline: (step, micro) to "images", one column or more whose names begin with "targets",
            and the "wanted", "index" and "problems" of `load_training_rows`.
        skip_bad_images: log and count unreadable images instead of raising.

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
            self.skipped += report(
                self.dataset.paths, row["wanted"], row["problems"], self._skip_bad_images
            )
            if row["index"].min() < 0:
                raise UserError(f"not one image of {self.dataset.root} can be read")
            targets = tuple(array for name, array in row.items() if name.startswith("targets"))
            yield TrainingBatch(
                row["images"],
                targets[0] if len(targets) == 1 else targets,
                row["index"],
                self.sampler.positions(micro),
                epoch=step // self.sampler.steps_per_epoch,
                step=step,
                micro=micro,
            )


class EvaluationLoader(Generic[Files, Batch]):
    """Yields the evaluation batches of one rank. Iterating again starts over.

    `len(loader)` is the number of batches; one of which no image can be read is left out.

    Args:
        dataset: the images.
        batches: which images each batch consists of, int64 (b,); -1 where there is none.
        pipeline: such a batch to its columns and the "valid" and "problems" of
            `load_evaluation_rows`.
        make: from these columns without the problems, and the "index", to what is yielded.
        skip_bad_images: log and count unreadable images instead of raising.

    Attributes:
        dataset: the images.
        batches: which images each batch consists of.
        skipped: unreadable images left out by this rank in the current or last pass.
    """

    def __init__(
        self,
        dataset: Files,
        batches: Sequence[np.ndarray],
        pipeline: BatchPipeline,
        make: Callable[[dict[str, np.ndarray]], Batch],
        skip_bad_images: bool,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.skipped = 0
        self._pipeline = pipeline
        self._make = make
        self._skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.batches)

    def with_progress(self, show: bool) -> Iterator[Batch]:
        """The batches, with a bar where there is a terminal."""
        return iter(
            tqdm(self, desc="evaluating", unit="batch", leave=False, disable=None if show else True)
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises:
            UserError: an image cannot be read (unless `skip_bad_images`), or its label is wrong.
        """
        self.skipped = 0
        if not self.batches:  # more ranks than batches
            return
        for row in self._pipeline(tuple(batch) for batch in self.batches):
            row["index"] = row.pop("request")
            self.skipped += report(
                self.dataset.paths, row["index"], row.pop("problems"), self._skip_bad_images
            )
            if row["valid"].any():
                yield self._make(row)
