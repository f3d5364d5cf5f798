"""Loaders of images and their labels, on the machinery of `mindtwins.data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindtwins.classification.mixing import Mixing
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import TrainingLoader
from mindtwins.data.pipeline import (
    BatchPipeline,
    load_evaluation_rows,
    load_training_rows,
    report,
    worker_count,
)
from mindtwins.data.sampler import EvaluationSampler, TrainingSampler
from mindtwins.errors import UserError


@dataclass(frozen=True)
class EvaluationBatch:
    """One evaluation batch of b rows, the same b for every batch and rank.

    Attributes:
        images: float32 (b, 3, image_size, image_size); zeros where not valid.
        labels: int32 (b,); 0 where not valid.
        index: int64 (b,), each image's index in the data set's `paths`; -1 where there is none.
        valid: bool (b,): which rows count.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    valid: np.ndarray


class EvaluationLoader:
    """Yields the evaluation batches of one rank; see `build_evaluation_loader`.

    `len(loader)` is the number of batches, the same on every rank. Iterating again starts over.

    Attributes:
        dataset: the images.
        skipped: unreadable images left out by this rank in the current or last pass.
    """

    def __init__(
        self, dataset: ImageFolder, num_batches: int, pipeline: BatchPipeline, skip_bad_images: bool
    ) -> None:
        self.dataset = dataset
        self.skipped = 0
        self._num_batches = num_batches
        self._pipeline = pipeline
        self._skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield the batches in order.

        Raises:
            UserError: an image cannot be read (unless `skip_bad_images`).
        """
        self.skipped = 0
        for row in self._pipeline((batch,) for batch in range(len(self))):
            del row["request"]
            self.skipped += report(
                self.dataset.paths, row["index"], row.pop("problems"), self._skip_bad_images
            )
            yield EvaluationBatch(**row)


def build_training_loader(
    dataset: ImageFolder,
    transform: TrainingTransform,
    mixing: Mixing,
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

    Args:
        dataset: the training images.
        transform: from picture to array, per image.
        mixing: mixup, CutMix and label smoothing, per batch.
        batch_size: images per rank and micro-batch.
        seed: of the run; with the step it decides everything a batch holds.
        rank: of this process.
        world: number of processes.
        accumulation: micro-batches per optimizer step.
        num_parallel_workers: capped at the machine's cores, with a notice.
        python_multiprocessing: whether the workers are processes instead of threads.
        skip_bad_images: whether an unreadable image is logged, counted and replaced by the next
            readable one in the epoch's order, instead of ending the run.

    Raises:
        UserError: the set is smaller than a global batch, or mixing would meet an odd batch.
    """
    if mixing.mixes and batch_size % 2:
        raise UserError(
            f"batch size {batch_size} is odd: mixup and CutMix pair images, so use an even one"
        )
    if mixing.num_classes < dataset.num_classes:
        raise UserError(
            f"{dataset.root} has {dataset.num_classes} classes but num_classes is only "
            f"{mixing.num_classes}: set it to {dataset.num_classes}"
        )
    sampler = TrainingSampler(len(dataset), batch_size, seed, rank, world, accumulation)
    batches = _TrainingBatches(dataset, transform, mixing, sampler, skip_bad_images)
    pipeline = BatchPipeline(batches, worker_count(num_parallel_workers), python_multiprocessing)
    return TrainingLoader(dataset, sampler, pipeline, skip_bad_images)


def build_evaluation_loader(
    dataset: ImageFolder,
    transform: EvaluationTransform,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    num_parallel_workers: int = 2,
    python_multiprocessing: bool = False,
    skip_bad_images: bool = False,
) -> EvaluationLoader:
    """Build the loader of one rank's evaluation batches; over all ranks every image occurs once.

    Args:
        dataset: the evaluation images.
        transform: from picture to array.
        batch_size: rows per rank and batch.
        rank: of this process.
        world: number of processes.
        num_parallel_workers: capped at the machine's cores, with a notice.
        python_multiprocessing: whether the workers are processes instead of threads.
        skip_bad_images: whether an unreadable image is logged, counted and left out, instead of
            ending the run.
    """
    sampler = EvaluationSampler(len(dataset), batch_size, rank, world)
    batches = _EvaluationBatches(dataset, transform, sampler)
    pipeline = BatchPipeline(batches, worker_count(num_parallel_workers), python_multiprocessing)
    return EvaluationLoader(dataset, len(sampler), pipeline, skip_bad_images)


@dataclass(frozen=True)
class _TrainingBatches:
    """(step, micro) to a training batch; targets (b, num_classes), smoothed and mixed."""

    columns = ("images", "targets", "wanted", "index", "problems")

    dataset: ImageFolder
    transform: TrainingTransform
    mixing: Mixing
    sampler: TrainingSampler
    skip_bad_images: bool

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        size = self.transform.image_size
        images = np.zeros((self.sampler.batch_size, 3, size, size), dtype=np.float32)

        def load(row: int, index: int, rng: np.random.Generator) -> None:
            self.transform(self.dataset.read(index), rng, out=images[row])

        rows = load_training_rows(self.sampler, request, load, self.skip_bad_images)
        _, index, _ = rows
        step, micro = (int(number) for number in request)
        targets = self.mixing(
            images,
            self.dataset.labels[index],
            seed=self.sampler.seed,
            step=step,
            positions=self.sampler.positions(micro),
            global_batch=self.sampler.global_batch,
            rank=self.sampler.rank,
        )
        return images, targets, *rows


@dataclass(frozen=True)
class _EvaluationBatches:
    """(batch,) to the arrays of an evaluation batch."""

    columns = ("images", "labels", "index", "valid", "problems")

    dataset: ImageFolder
    transform: EvaluationTransform
    sampler: EvaluationSampler

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        index = self.sampler.indices(int(request[0]))
        size = self.transform.image_size
        images = np.zeros((len(index), 3, size, size), dtype=np.float32)

        def load(row: int, image: int) -> None:
            self.transform(self.dataset.read(image), out=images[row])

        valid, problems = load_evaluation_rows(index, load)
        labels = np.where(valid, self.dataset.labels[index], np.int32(0))
        return images, labels, index, valid, problems
