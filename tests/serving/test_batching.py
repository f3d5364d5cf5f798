"""What is computed together, in which order, and for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mindtwins.serving.batching import (
    Admission,
    Batcher,
    QueueFull,
    Stopped,
    batch_sizes,
    cut,
)

PATIENCE = 30


class Model:
    """Squares numbers when it is allowed to; remembers what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.is_busy = threading.Event()
        self.threads: set[str] = set()

    def start(self):
        self.threads.add(threading.current_thread().name)
        return self

    def __call__(self, items: list[int]) -> list[int]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(items))
        self.is_busy.set()
        assert self.may_go.wait(PATIENCE)
        if -1 in items:
            raise ZeroDivisionError("minus one")
        return [item * item for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher[int, int]]:
    """Of up to 8 numbers, kept busy with the number 0 so that others wait."""
    batcher: Batcher[int, int] = Batcher(model.start, max_batch=8, max_wait=0)
    batcher.run()
    batcher.submit(0)
    assert model.is_busy.wait(PATIENCE)
    yield batcher
    model.may_go.set()
    batcher.close(PATIENCE)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [2, 1]), (6, [4, 2, 1]), (8, [8, 4, 2, 1])]
)
def test_sizes(most, sizes):
    assert batch_sizes(most) == sizes


@pytest.mark.parametrize("count", range(1, 20))
def test_parts_cover_a_batch_once(count):
    items = list(range(count))
    parts = [items[part] for part in cut(count, batch_sizes(8))]
    assert [item for part in parts for item in part] == items
    assert all(len(part) in (1, 2, 4, 8) for part in parts)


def test_seven_is_four_and_two_and_one():
    assert list(cut(7, batch_sizes(8))) == [slice(0, 4), slice(4, 6), slice(6, 7)]


def test_what_waits_is_computed_together_in_order(batcher, model):
    futures = [batcher.submit(number) for number in range(1, 8)]
    assert batcher.depth == 7
    model.may_go.set()
    assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(1, 8)]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6], [7]]
    assert model.threads == {"compute"} and batcher.depth == 0


def test_no_batch_is_larger_than_allowed(batcher, model):
    futures = [batcher.submit(number) for number in range(1, 21)]
    model.may_go.set()
    assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(1, 21)]
    assert [len(batch) for batch in model.batches] == [1, 8, 8, 4]


def test_only_one_kind_comes_together(batcher, model):
    """The oldest first, and the others of its kind with it."""
    futures = [batcher.submit(number, kind=number % 3) for number in range(1, 8)]
    model.may_go.set()
    assert [future.result(PATIENCE) for future in futures] == [n * n for n in range(1, 8)]
    assert model.batches[1:] == [[1, 4], [7], [2, 5], [3, 6]]


def test_an_error_reaches_its_part_alone(batcher, model):
    futures = [batcher.submit(number) for number in (1, 2, 3, 4, 5, -1, 7)]
    model.may_go.set()
    assert [future.result(PATIENCE) for future in futures[:4]] == [1, 4, 9, 16]
    for future in futures[4:6]:
        with pytest.raises(ZeroDivisionError, match="minus one"):
            future.result(PATIENCE)
    assert futures[6].result(PATIENCE) == 49
    assert batcher.submit(9).result(PATIENCE) == 81


def test_too_few_results_are_an_error():
    batcher: Batcher[int, int] = Batcher(lambda: lambda items: [1], max_batch=2, max_wait=60)
    batcher.run()
    futures = [batcher.submit(number) for number in (1, 2)]
    with pytest.raises(ValueError, match="shorter"):
        futures[1].result(PATIENCE)
    batcher.close(PATIENCE)


def test_what_is_cancelled_is_not_computed(batcher, model):
    futures = [batcher.submit(number) for number in range(1, 6)]
    assert futures[0].cancel() and futures[3].cancel()
    model.may_go.set()
    assert [futures[i].result(PATIENCE) for i in (1, 2, 4)] == [4, 9, 25]
    assert model.batches == [[0], [2, 3], [5]]


def test_what_is_begun_cannot_be_cancelled(batcher, model):
    model.is_busy.clear()
    future = batcher.submit(3)
    model.may_go.set()
    assert model.is_busy.wait(PATIENCE)
    assert not future.cancel() and future.result(PATIENCE) == 9


def test_a_lone_item_waits_for_others_no_longer_than_allowed():
    batcher: Batcher[int, int] = Batcher(lambda: lambda items: items, max_batch=8, max_wait=0.2)
    batcher.run()
    batcher.started.result(PATIENCE)
    begun = time.monotonic()
    batcher.submit(1).result(PATIENCE)
    assert time.monotonic() - begun >= 0.2
    batcher.close(PATIENCE)


def test_a_full_batch_waits_for_nothing():
    batcher: Batcher[int, int] = Batcher(lambda: lambda items: items, max_batch=2, max_wait=1000)
    batcher.run()
    first = batcher.submit(1)
    assert not first.done()
    assert [batcher.submit(2).result(PATIENCE), first.result(PATIENCE)] == [2, 1]
    batcher.close(PATIENCE)


def test_close_computes_what_waits_and_takes_no_more(batcher, model):
    futures = [batcher.submit(number) for number in range(1, 5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            futures.append(batcher.submit(5))
        except Stopped:
            break
    model.may_go.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert [future.result(0) for future in futures[:4]] == [1, 4, 9, 16]
    assert all(future.done() for future in futures)


def test_a_start_that_fails_is_told():
    def start():
        raise OSError("no such device")

    batcher: Batcher[int, int] = Batcher(start, max_batch=1, max_wait=0)
    assert not batcher.is_ready
    batcher.run()
    with pytest.raises(OSError, match="no such device"):
        batcher.started.result(PATIENCE)
    assert not batcher.is_ready
    batcher.close()


def test_admission_is_bounded():
    admission = Admission(2)
    with admission:
        with admission:
            assert admission.taken == 2
            with pytest.raises(QueueFull), admission:
                pass
            assert admission.taken == 2
        with admission:
            pass
    assert admission.taken == 0
