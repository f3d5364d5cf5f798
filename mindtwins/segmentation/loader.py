"""Loaders of image and label pairs, on the machinery of `mindtwins.data`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtwins.data.loader import EvaluationLoader, LoaderOptions, TrainingLoader
from mindtwins.data.pipeline import load_evaluation_rows, load_training_rows
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


def build_segmentation_training_loader(
    dataset: ImageLabelFolder,
    transform: SegmentationTransform,
    *,
    batch_size: int,
    seed: int,
    accumulation: int = 1,
    options: LoaderOptions,
) -> TrainingLoader:
    """Build the loader of one rank's training batches.

    Arguments, order and errors are those of `mindtwins.data`'s samplers and pipelines.
    """
    sampler = TrainingSampler(
        len(dataset), batch_size, seed, options.rank, options.world, accumulation
    )
    batches = _TrainingBatches(dataset, transform, sampler, options.skip_bad_images)
    return TrainingLoader(dataset, sampler, options.pipeline(batches), options.skip_bad_images)


def build_segmentation_loader(
    dataset: ImageLabelFolder,
    transform: TestTransform,
    *,
    batch_size: int = 1,
    options: LoaderOptions,
) -> EvaluationLoader[ImageLabelFolder, SegmentationBatch]:
    """Build the loader of one rank's evaluation batches; over all ranks every picture occurs once.

    Only pictures of equal sizes share a batch, and they come together, because a graph is compiled
    for every shape; the sizes are read off the files' headers here. Each rank takes a stretch of
    the sizes. The ranks' numbers of batches may differ, by one.

    Args:
        dataset: the evaluation pairs.
        transform: from picture to views.
        batch_size: the most pictures per batch.
        options: ranks, workers and unreadable pairs.
    """
    sizes = [dataset.size(index) for index in range(len(dataset))]
    batches = equal_size_batches(sizes, batch_size)
    return EvaluationLoader(
        dataset,
        options.own(batches),
        options.pipeline(_EvaluationBatches(dataset, transform)),
        _batch_of_views,
        options.skip_bad_images,
    )


def _batch_of_views(columns: dict[str, np.ndarray]) -> SegmentationBatch:
    views = tuple(array for name, array in columns.items() if name.startswith("view"))
    return SegmentationBatch(views, columns["labels"], columns["index"], columns["valid"])


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
