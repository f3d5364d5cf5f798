"""Loaders on top of `mindspore.dataset` that yield NumPy batches.

One row of the MindSpore pipeline is a whole batch: its source only counts, and a mapped Python
callable reads, transforms, stacks and mixes the images of one batch. The image work is PIL's,
because MindSpore's own operators differ from it and can crash on damaged files; PIL and NumPy
release the interpreter lock, so the workers are threads unless processes are asked for, which take
about a second to start and stop. What a batch holds depends on its number alone, never on the
workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mindspore.dataset as ds
import numpy as np
from PIL import Image

from mindtwins.data.decode import UnreadableImage, read_rgb
from mindtwins.data.evaluation_transform import EvaluationTransform
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.mixing import Mixing
from mindtwins.data.randomness import sample_generator
from mindtwins.data.sampler import EvaluationSampler, TrainingSampler
from mindtwins.data.training_transform import TrainingTransform
from mindtwins.errors import UserError

logger = logging.getLogger(__name__)
# For what every rank would say alike: only rank 0's is heard.
notices = logging.getLogger("mindtwins.notices")

# Finished batches that wait per worker. A row is a whole batch, 77 MB for 128 images of 224 x 224,
# so MindSpore's default of 16 would fill the memory.
PREFETCHED_BATCHES = 1


@dataclass(frozen=True)
class TrainingBatch:
    """One micro-batch of b images.

    Attributes:
        images: float32 (b, 3, image_size, image_size), augmented, normalised and mixed.
        targets: float32 (b, num_classes), the soft targets with smoothing and mixing applied.
        labels: int32 (b,), each image's own class.
        index: int64 (b,), each image's place in the data set's `paths`.
        positions: int64 (b,), each image's position in the global batch.
        epoch: counted from 0.
        step: the optimizer step, counted from 0 over the whole run.
        micro: which of the step's micro-batches, 0 to accumulation - 1.
    """

    images: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    positions: np.ndarray
    epoch: int
    step: int
    micro: int


@dataclass(frozen=True)
class EvaluationBatch:
    """One evaluation batch of b rows, the same b for every batch and rank.

    Attributes:
        images: float32 (b, 3, image_size, image_size); zeros where not valid.
        labels: int32 (b,); 0 where not valid.
        index: int64 (b,), each image's place in the data set's `paths`; -1 where there is none.
        valid: bool (b,): which rows count.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    valid: np.ndarray


def worker_count(requested: int) -> int:
    """Return how many workers to use: MindSpore refuses more than the machine has cores."""
    cores = os.cpu_count() or 1
    if requested < 1:
        raise UserError(f"num_parallel_workers is {requested}: it must be at least 1")
    if requested > cores:
        notices.warning(
            "num_parallel_workers lowered from %d to the machine's %d cores", requested, cores
        )
    return min(requested, cores)


class TrainingLoader:
    """Yields the training batches of one rank; see `build_training_loader`.

    Attributes:
        dataset: the images.
        sampler: which image is seen when.
        skipped: unreadable images passed over so far by this rank, each counted once per epoch.
    """

    def __init__(
        self, dataset: ImageFolder, sampler: TrainingSampler, run: _Run, skip_bad_images: bool
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.skipped = 0
        self._run = run
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
        rows = self._run(self.sampler.micro_batches(start_step, stop_step))
        for request, images, targets, labels, index, problems in rows:
            step, micro = (int(number) for number in request)
            epoch, places = self.sampler.places(step, micro)
            wanted = self.sampler.order(epoch)[places]
            self.skipped += _report(self.dataset, wanted, problems, self._skip_bad_images)
            if index.min() < 0:
                raise UserError(f"not one image of {self.dataset.root} can be read")
            positions = self.sampler.positions(micro)
            yield TrainingBatch(images, targets, labels, index, positions, epoch, step, micro)


class EvaluationLoader:
    """Yields the evaluation batches of one rank; see `build_evaluation_loader`.

    `len(loader)` is the number of batches, the same on every rank. Iterating again starts over.

    Attributes:
        dataset: the images.
        skipped: unreadable images left out by this rank in the current or last pass.
    """

    def __init__(
        self, dataset: ImageFolder, num_batches: int, run: _Run, skip_bad_images: bool
    ) -> None:
        self.dataset = dataset
        self.skipped = 0
        self._num_batches = num_batches
        self._run = run
        self._skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield the batches in order.

        Raises:
            UserError: an image cannot be read (unless `skip_bad_images`).
        """
        self.skipped = 0
        rows = self._run((batch,) for batch in range(len(self)))
        for _, images, labels, index, valid, problems in rows:
            self.skipped += _report(self.dataset, index, problems, self._skip_bad_images)
            yield EvaluationBatch(images, labels, index, valid)


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
    task = _TrainingTask(dataset, transform, mixing, sampler, skip_bad_images)
    run = _Run(task, worker_count(num_parallel_workers), python_multiprocessing)
    return TrainingLoader(dataset, sampler, run, skip_bad_images)


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
    task = _EvaluationTask(dataset, transform, sampler)
    run = _Run(task, worker_count(num_parallel_workers), python_multiprocessing)
    return EvaluationLoader(dataset, len(sampler), run, skip_bad_images)


# A task never raises for a damaged file: MindSpore would bury the message in a log of its own. What
# is wrong travels as text in the row, one string per image, empty where nothing is.


@dataclass(frozen=True)
class _TrainingTask:
    """(step, micro) to the arrays of a training batch."""

    columns = ("request", "images", "targets", "labels", "index", "problems")

    dataset: ImageFolder
    transform: TrainingTransform
    mixing: Mixing
    sampler: TrainingSampler
    skip_bad_images: bool

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        step, micro = (int(number) for number in request)
        epoch, places = self.sampler.places(step, micro)
        size = self.transform.image_size
        images = np.zeros((len(places), 3, size, size), dtype=np.float32)
        index = np.full(len(places), -1, dtype=np.int64)
        problems = []
        for row, place in enumerate(places):
            used, picture, problem = self._read(epoch, int(place))
            problems.append(problem)
            if picture is not None:
                index[row] = used
                images[row] = self.transform(
                    picture, sample_generator(self.sampler.seed, epoch, used)
                )
        labels = self.dataset.labels[index]
        targets = self.mixing(
            images,
            labels,
            seed=self.sampler.seed,
            step=step,
            positions=self.sampler.positions(micro),
            global_batch=self.sampler.global_batch,
        )
        return request, images, targets, labels, index, np.array(problems)

    def _read(self, epoch: int, place: int) -> tuple[int, Image.Image | None, str]:
        """Read the image at a place of the epoch's order, or the next one that is readable."""
        order = self.sampler.order(epoch)
        problem = ""
        for ahead in range(len(order) if self.skip_bad_images else 1):
            index = int(order[(place + ahead) % len(order)])
            try:
                return index, read_rgb(self.dataset.paths[index]), problem
            except UnreadableImage as error:
                problem = problem or str(error)
        return -1, None, problem


@dataclass(frozen=True)
class _EvaluationTask:
    """(batch,) to the arrays of an evaluation batch."""

    columns = ("request", "images", "labels", "index", "valid", "problems")

    dataset: ImageFolder
    transform: EvaluationTransform
    sampler: EvaluationSampler

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        index = self.sampler.indices(int(request[0]))
        size = self.transform.image_size
        images = np.zeros((len(index), 3, size, size), dtype=np.float32)
        valid = index >= 0
        problems = [""] * len(index)
        for row in np.flatnonzero(valid):
            try:
                images[row] = self.transform(read_rgb(self.dataset.paths[index[row]]))
            except UnreadableImage as error:
                valid[row] = False
                problems[row] = str(error)
        labels = np.where(valid, self.dataset.labels[index], np.int32(0))
        return request, images, labels, index, valid, np.array(problems)


def _report(
    dataset: ImageFolder, wanted: np.ndarray, problems: np.ndarray, skip_bad_images: bool
) -> int:
    """Raise for, or log and count, the images among `wanted` that could not be read."""
    bad = [
        (int(index), str(problem))
        for index, problem in zip(wanted, problems, strict=True)
        if problem
    ]
    for index, problem in bad:
        path = dataset.paths[index]
        if not skip_bad_images:
            raise UserError(
                f"cannot read image {path} ({problem}): repair or remove it, or pass "
                "--skip_bad_images"
            )
        logger.warning("skipped unreadable image %s: %s", path, problem)
    return len(bad)


class _Requests:
    """The source of the pipeline: an iterable of int64 vectors."""

    def __init__(self, requests: Iterable[tuple[int, ...]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[tuple[np.ndarray]]:
        for request in self._requests:
            yield (np.array(request, dtype=np.int64),)


@contextmanager
def _prefetching(batches: int) -> Iterator[None]:
    """Set the length of the pipeline's queues, a global setting read when a pipeline is built."""
    before = ds.config.get_prefetch_size()
    ds.config.set_prefetch_size(batches)
    try:
        yield
    finally:
        ds.config.set_prefetch_size(before)


@dataclass(frozen=True)
class _Run:
    """Yields task(request) for every request, in order, computed ahead by workers."""

    task: _TrainingTask | _EvaluationTask
    workers: int
    processes: bool

    def __call__(self, requests: Iterable[tuple[int, ...]]) -> Iterator[list[np.ndarray]]:
        with _prefetching(PREFETCHED_BATCHES):
            pipeline = ds.GeneratorDataset(
                _Requests(requests), ["request"], shuffle=False, python_multiprocessing=False
            ).map(
                self.task,
                input_columns=["request"],
                output_columns=list(self.task.columns),
                num_parallel_workers=self.workers,
                python_multiprocessing=self.processes,
            )
            iterator = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
        try:
            yield from iterator
        finally:
            iterator.stop()  # ends the workers also when the consumer leaves early
