"""One thread that computes: what waits together and is alike is computed together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Compute = Callable[[Sequence[Item]], Sequence[Result]]


class QueueFull(Exception):
    """There are as many requests without an answer as may be."""


class Stopped(Exception):
    """Nothing is computed any more."""


class Admission:
    """A bound on requests that are in the house: uploading, waiting, computed or drawn.

    Entered by each as a context; for one event loop, so without a lock.

    Attributes:
        limit: how many there may be.
        taken: how many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def __enter__(self) -> None:
        """Raises QueueFull."""
        if self.taken >= self.limit:
            raise QueueFull
        self.taken += 1

    def __exit__(self, *error: object) -> None:
        self.taken -= 1


def batch_sizes(max_batch: int) -> list[int]:
    """The powers of two up to `max_batch`, the largest first."""
    return [1 << power for power in reversed(range(max_batch.bit_length()))]


def cut(count: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Parts of the given sizes, the largest first, that make up `count`: 7 is 4, 2 and 1.

    Args:
        sizes: the largest first; 1 is among them.
    """
    start = 0
    for size in sizes:
        while count - start >= size:
            yield slice(start, start + size)
            start += size


@dataclass(eq=False)
class _Job(Generic[Item, Result]):
    item: Item
    kind: Hashable
    arrival: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Computes items in a thread of its own, in the order of their arrival.

    Of the items that wait, the oldest goes next, with those of its kind that arrived after it, up
    to `max_batch`. If there are fewer, it waits for more until it is `max_wait` seconds old. A
    batch is computed in parts of the sizes of `batch_sizes`, for which a model can be compiled
    beforehand. An item whose future is cancelled before its turn is not computed.

    Args:
        start: called in the thread, once, before anything is computed; gives the function that
            computes a part: as many results as items, in their order.
        max_batch: most items of a batch.
        max_wait: in seconds.
        observe: called with the size of each part.

    Attributes:
        started: done when `start` is, with its error if it failed.
    """

    def __init__(
        self,
        start: Callable[[], Compute],
        *,
        max_batch: int,
        max_wait: float,
        observe: Callable[[int], Any] = lambda size: None,
    ) -> None:
        self.started: Future[None] = Future()
        self._start = start
        self._max_batch = max_batch
        self._sizes = batch_sizes(max_batch)
        self._max_wait = max_wait
        self._observe = observe
        self._waiting: list[_Job[Item, Result]] = []
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon: a compilation cannot be interrupted, and must not hold the end of the process.
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def run(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def depth(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether items are being computed."""
        return self.started.done() and self.started.exception() is None

    def submit(self, item: Item, kind: Hashable = None) -> Future[Result]:
        """The result of an item, some time later.

        Args:
            kind: items of one kind may be computed together.

        Raises:
            Stopped: after `close`.
        """
        job: _Job[Item, Result] = _Job(item, kind)
        with self._changed:
            if self._is_closed:
                raise Stopped
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self, seconds: float | None = None) -> None:
        """Take no more items, compute those that wait, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive() and self.started.done():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            compute = self._start()
        except BaseException as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while jobs := self._next_batch():
            for part in cut(len(jobs), self._sizes):
                self._compute(compute, jobs[part])
            # Not to be kept while nothing is to do.
            del jobs

    def _compute(self, compute: Compute, jobs: Sequence[_Job[Item, Result]]) -> None:
        """Whatever goes wrong goes to those who wait for these items, and to nobody else."""
        self._observe(len(jobs))
        try:
            results = compute([job.item for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
        except Exception as error:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)

    def _next_batch(self) -> list[_Job[Item, Result]]:
        """Items of one kind that can no longer be cancelled; empty when all is done."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.future.cancelled()]
                if not self._waiting:
                    if self._is_closed:
                        return []
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                alike = [job for job in self._waiting if job.kind == first.kind]
                alike = alike[: self._max_batch]
                patience = first.arrival + self._max_wait - time.monotonic()
                if len(alike) < self._max_batch and patience > 0 and not self._is_closed:
                    self._changed.wait(patience)
                    continue
                self._waiting = [job for job in self._waiting if job not in alike]
                if begun := [job for job in alike if job.future.set_running_or_notify_cancel()]:
                    return begun
