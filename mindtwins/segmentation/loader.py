"""Loaders of image and label pairs, on the machinery of `mindtwins.data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindtwins.data.loader import TrainingLoader
from mindtwins.data.pipeline import (
    BatchPipeline,
    load_evaluation_rows,
    load_training_rows,
    report,
    worker_count,
)
from mindtwins.data.sampler import TrainingSampler, equal_size_batches
from mindtwins.segmentation.dataset import IGNORED, ImageLabelFolder
from mindtwins.segmentation.transforms import SegmentationTransform, TestTransform


@dataclass(frozen=True)
class SegmentationBatch:
    """One evaluation batch of b pictures of one size.

    Attributes:
        images: the views of the pictures: float32 (b, 3, h, w), one array for each ratio of the
            test transform; zeros where not valid.
        labels: uint8 (b, height, width) at the pictures' own size; 255 is ignored.
        index: int64 (b,), each picture's index in the data set's `paths`; -1 where there is none.
        valid: bool (b,): which rows count.
    """

    images: tuple[np.ndarray, ...]
    labels: np.ndarray
    index: np.ndarray
    valid: np.ndarray


class SegmentationLoader:
    """Yields the evaluation batches of one rank; see `build_segmentation_loader`.

    `len(loader)` is the number of this rank's batches. Iterating again starts over. A batch of
    which no picture can be read is left out.

    Attributes:
        dataset: the pairs.
        batches: the pictures of each batch, int64 (b,), -1 where there is none.
        skipped: unreadable pairs left out by this rank in the current or last pass.
    """

    def __init__(
        self,
        dataset: ImageLabelFolder,
        batches: list[np.ndarray],
        pipeline: BatchPipeline,
        skip_bad_images: bool,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.skipped = 0
        self._pipeline = pipeline
        self._skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SegmentationBatch]:
        """Yield the batches in order.

        Raises:
            UserError: a pair cannot be read (unless `skip_bad_images`), or its labels are wrong.
        """
        self.skipped = 0
        if not self.batches:  # more ranks than batches
            return
        for row in self._pipeline(tuple(batch) for batch in self.batches):
            index = row["request"]
            self.skipped += report(
                self.dataset.paths, index, row["problems"], self._skip_bad_images
            )
            if row["valid"].any():  # else its size may be unknown, too
                views = tuple(row[name] for name in row if name.startswith("view"))
                yield SegmentationBatch(views, row["labels"], index, row["valid"])


def build_segmentation_training_loader(
    dataset: ImageLabelFolder,
    transform: SegmentationTransform,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    accumulation: int = 1,
    num_parallel_workers: int = 2,
    python_multiprocessing: bool = False,
    skip_bad_images: bool = False,
) -> TrainingLoader:
    """Build the loader of one rank's training batches.

    Arguments, order and errors are those of `mindtwins.data.loader`'s samplers and pipelines.
    """
    sampler = TrainingSampler(len(dataset), batch_size, seed, rank, world, accumulation)
    batches = _TrainingBatches(dataset, transform, sampler, skip_bad_images)
    pipeline = BatchPipeline(batches, worker_count(num_parallel_workers), python_multiprocessing)
    return TrainingLoader(dataset, sampler, pipeline, skip_bad_images)


def build_segmentation_loader(
    dataset: ImageLabelFolder,
    transform: TestTransform,
    *,
    batch_size: int = 1,
    rank: int = 0,
    world: int = 1,
    num_parallel_workers: int = 2,
    python_multiprocessing: bool = False,
    skip_bad_images: bool = False,
) -> SegmentationLoader:
    """Build the loader of one rank's evaluation batches; over all ranks every picture occurs once.

    Only pictures of equal sizes share a batch, and they come together, because a graph is compiled
    for every shape; the sizes are read off the files' headers here. Each rank takes a stretch of
    the sizes. The ranks' numbers of batches may differ, by one.

    Args:
        dataset: the evaluation pairs.
        transform: from picture to views.
        batch_size: the most pictures per batch.
        rank: of this process.
        world: number of processes.
        num_parallel_workers: capped at the machine's cores, with a notice.
        python_multiprocessing: whether the workers are processes instead of threads.
        skip_bad_images: whether an unreadable pair is logged, counted and left out, instead of
            ending the run.
    """
    sizes = [dataset.size(index) for index in range(len(dataset))]
    batches = equal_size_batches(sizes, batch_size)
    own = batches[rank * len(batches) // world : (rank + 1) * len(batches) // world]
    pipeline = BatchPipeline(
        _EvaluationBatches(dataset, transform),
        worker_count(num_parallel_workers),
        python_multiprocessing,
    )
    return SegmentationLoader(dataset, own, pipeline, skip_bad_images)


@dataclass(frozen=True)
class _TrainingBatches:
    """(step, micro) to a training batch; targets (b, size, size), 255 where there is no class."""

    columns = ("images", "targets", "wanted", "index", "problems")

    dataset: ImageLabelFolder
    transform: SegmentationTransform
    sampler: TrainingSampler
    skip_bad_images: bool

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        count, size = self.sampler.batch_size, self.transform.image_size
        images = np.zeros((count, 3, size, size), dtype=np.float32)
        targets = np.full((count, size, size), IGNORED, dtype=np.int32)

        def load(row: int, index: int, rng: np.random.Generator) -> None:
            images[row], targets[row] = self.transform(*self.dataset.read(index), rng)

        rows = load_training_rows(self.sampler, request, load, self.skip_bad_images)
        return images, targets, *rows


@dataclass(frozen=True)
class _EvaluationBatches:
    """The pictures of an evaluation batch to its arrays."""

    dataset: ImageLabelFolder
    transform: TestTransform

    @property
    def columns(self) -> tuple[str, ...]:
        views = (f"view{number}" for number in range(len(self.transform.scales)))
        return (*views, "labels", "valid", "problems")

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        width, height = self.dataset.size(int(request[0]))
        views = [
            np.zeros((len(request), 3, rows, columns), dtype=np.float32)
            for columns, rows in self.transform.sizes(max(width, 1), max(height, 1))
        ]
        labels = np.full((len(request), height, width), IGNORED, dtype=np.uint8)

        def load(row: int, index: int) -> None:
            image, labels[row] = self.dataset.read(index)
            for view, picture in zip(views, self.transform(image), strict=True):
                view[row] = picture

        valid, problems = load_evaluation_rows(request, load)
        return *views, labels, valid, problems
