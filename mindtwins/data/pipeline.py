"""What all loaders have in common: batches computed ahead on top of `mindspore.dataset`.

One row of the MindSpore pipeline is a whole batch: its source only counts, and a mapped Python
callable, the *batch function*, reads, transforms and stacks the images of one batch. The image work
is PIL's and NumPy's, because MindSpore's own operators differ from it and can crash on damaged
files; PIL and NumPy release the interpreter lock, so the workers are threads unless processes are
asked for, which take about a second to start and stop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import mindspore.dataset as ds
import numpy as np

from mindtwins.data.decode import UnreadableImage
from mindtwins.data.notices import tell_once
from mindtwins.data.randomness import sample_generator
from mindtwins.data.sampler import TrainingSampler
from mindtwins.errors import UserError

logger = logging.getLogger(__name__)

# Finished batches that wait per worker. A row is a whole batch, 77 MB for 128 images of 224 x 224,
# so MindSpore's default of 16 would fill the memory.
PREFETCHED_BATCHES = 1

# Nothing is raised in a worker: MindSpore would bury the message in a log of its own. What is wrong
# with damaged files travels as text in the row, one string per image, empty where nothing is; a
# batch function's UserError travels in the place of its arrays.


class BatchFunction(Protocol):
    """Turns a request, an int64 vector, into the arrays of a batch, one per column."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]: ...


@dataclass(frozen=True)
class BatchPipeline:
    """Yields load_batch(request) for every request, in order, computed ahead by workers.

    A row is a dictionary: the function's columns and the "request".

    Args:
        load_batch: what the workers do.
        workers: their number; see `worker_count`.
        processes: whether they are processes instead of threads.
    """

    load_batch: BatchFunction
    workers: int
    processes: bool

    def __call__(self, requests: Iterable[tuple[int, ...]]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the rows.

        Raises:
            UserError: of the batch function.
        """
        columns = ("request", *self.load_batch.columns, "mistake")
        with _prefetching(PREFETCHED_BATCHES):
            pipeline = ds.GeneratorDataset(
                _Requests(requests), ["request"], shuffle=False, python_multiprocessing=False
            ).map(
                _Guarded(self.load_batch),
                input_columns=["request"],
                output_columns=list(columns),
                num_parallel_workers=self.workers,
                python_multiprocessing=self.processes,
            )
            iterator = pipeline.create_tuple_iterator(num_epochs=1, output_numpy=True)
        try:
            for values in iterator:
                row = dict(zip(columns, values, strict=True))
                mistake = str(row.pop("mistake")[0])
                if mistake:
                    raise UserError(mistake)
                yield row
        finally:
            iterator.stop()  # ends the workers also when the consumer leaves early


@dataclass(frozen=True)
class _Guarded:
    """A batch function with the request before and its UserError, if any, after the arrays."""

    load_batch: BatchFunction

    def __call__(self, request: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return request, *self.load_batch(request), np.array([""])
        except UserError as error:
            nothing = [np.zeros(1)] * len(self.load_batch.columns)
            return request, *nothing, _texts([str(error)])


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


def worker_count(requested: int) -> int:
    """Return how many workers to use: MindSpore refuses more than the machine has cores."""
    cores = os.cpu_count() or 1
    if requested < 1:
        raise UserError(f"num_parallel_workers is {requested}: it must be at least 1")
    if requested > cores:
        tell_once(
            ("num_parallel_workers", requested),
            f"num_parallel_workers lowered from {requested} to the machine's {cores} cores",
        )
    return min(requested, cores)


def _texts(lines: Sequence[str]) -> np.ndarray:
    """For the pipeline, which takes UTF-8 only: file names may be other bytes."""
    return np.array([line.encode(errors="backslashreplace").decode() for line in lines])


def load_training_rows(
    sampler: TrainingSampler,
    request: np.ndarray,
    load: Callable[[int, int, np.random.Generator], None],
    skip_bad_images: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill the rows of a training batch with the images that the sampler has for it.

    Args:
        sampler: which image is seen when.
        request: (step, micro).
        load: (row of the batch, index of the image, its generator): reads the image and fills the
            row. Raises UnreadableImage, with the row as it was.
        skip_bad_images: whether the next readable image takes the place of an unreadable one.

    Returns:
        int64 (b,): the images that were wanted; int64 (b,): those used, -1 where there is none; and
        str (b,): what was wrong with the first one that was tried.
    """
    epoch, slots = sampler.slots(*map(int, request))
    order = sampler.order(epoch)
    used = np.full(len(slots), -1, dtype=np.int64)
    problems = [""] * len(slots)
    for row, slot in enumerate(slots):
        for ahead in range(len(order) if skip_bad_images else 1):
            index = int(order[(slot + ahead) % len(order)])
            try:
                load(row, index, sample_generator(sampler.seed, epoch, index))
            except UnreadableImage as error:
                problems[row] = problems[row] or str(error)
            else:
                used[row] = index
                break
    return order[slots], used, _texts(problems)


def load_evaluation_rows(
    index: np.ndarray, load: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the rows of an evaluation batch with the images `index`, -1 where there is none.

    Args:
        index: int64 (b,).
        load: (row of the batch, index of the image), as for `load_training_rows`.

    Returns:
        bool (b,): which rows are filled; and str (b,): what is wrong with those that are not.
    """
    valid = index >= 0
    problems = [""] * len(index)
    for row in np.flatnonzero(valid):
        try:
            load(int(row), int(index[row]))
        except UnreadableImage as error:
            valid[row] = False
            problems[row] = str(error)
    return valid, _texts(problems)


def report(
    paths: Sequence[str], wanted: np.ndarray, problems: np.ndarray, skip_bad_images: bool
) -> int:
    """Raise for, or log and count, the images among `wanted` that could not be read."""
    bad = [
        (int(index), str(problem))
        for index, problem in zip(wanted, problems, strict=True)
        if problem
    ]
    for index, problem in bad:
        if not skip_bad_images:
            raise UserError(
                f"cannot read image {paths[index]} ({problem}): repair it, or pass "
                "--skip_bad_images"
            )
        logger.warning("skipped unreadable image %s: %s", paths[index], problem)
    return len(bad)
