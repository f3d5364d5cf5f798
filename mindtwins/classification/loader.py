"""Loaders of images and their labels, on the machinery of `mindtwins.data`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtwins.classification.mixing import Mixing
from mindtwins.classification.transforms import EvaluationTransform, TrainingTransform
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import EvaluationLoader, LoaderOptions, TrainingLoader
from mindtwins.data.pipeline import load_evaluation_rows, load_training_rows
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


def build_training_loader(
    dataset: ImageFolder,
    transform: TrainingTransform,
    mixing: Mixing,
    *,
    batch_size: int,
    seed: int,
    accumulation: int = 1,
    options: LoaderOptions,
) -> TrainingLoader:
    """Build the loader of one rank's training batches.

    Args:
        dataset: the training images.
        transform: from picture to array, per image.
        mixing: mixup, CutMix and label smoothing, per batch.
        batch_size: images per rank and micro-batch.
        seed: of the run; with the step it decides everything a batch holds.
        accumulation: micro-batches per optimizer step.
        options: ranks, workers and unreadable images.

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
    sampler = TrainingSampler(
        len(dataset), batch_size, seed, options.rank, options.world, accumulation
    )
    batches = _TrainingBatches(dataset, transform, mixing, sampler, options.skip_bad_images)
    return TrainingLoader(dataset, sampler, options.pipeline(batches), options.skip_bad_images)


def build_evaluation_loader(
    dataset: ImageFolder,
    transform: EvaluationTransform,
    *,
    batch_size: int,
    options: LoaderOptions,
) -> EvaluationLoader[ImageFolder, EvaluationBatch]:
    """Build the loader of one rank's evaluation batches; over all ranks every image occurs once.

    Args:
        dataset: the evaluation images.
        transform: from picture to array.
        batch_size: rows per rank and batch.
        options: ranks, workers and unreadable images.
    """
    sampler = EvaluationSampler(len(dataset), batch_size, options.rank, options.world)
    return EvaluationLoader(
        dataset,
        [sampler.indices(batch) for batch in range(len(sampler))],
        options.pipeline(_EvaluationBatches(dataset, transform)),
        lambda columns: EvaluationBatch(**columns),
        options.skip_bad_images,
    )


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
    """The images of an evaluation batch to its arrays."""

    columns = ("images", "labels", "valid", "problems")

    dataset: ImageFolder
    transform: EvaluationTransform

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        size = self.transform.image_size
        images = np.zeros((len(request), 3, size, size), dtype=np.float32)

        def load(row: int, image: int) -> None:
            self.transform(self.dataset.read(image), out=images[row])

        valid, problems = load_evaluation_rows(request, load)
        labels = np.where(valid, self.dataset.labels[request], np.int32(0))
        return images, labels, valid, problems
