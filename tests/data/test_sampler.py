from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from mindtwins.data.sampler import (
    EvaluationSampler,
    GroupSampler,
    TrainingSampler,
    batch_positions,
    epoch_order,
    equal_size_batches,
)
from mindtwins.errors import UserError


def test_epoch_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(1000, 3, epoch) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for first, second in itertools.combinations(orders, 2):
        assert (first != second).mean() > 0.98
    epoch_order.cache_clear()
    np.testing.assert_array_equal(epoch_order(1000, 3, 1), orders[1])
    assert (epoch_order(1000, 4, 1) != orders[1]).mean() > 0.98


@pytest.mark.parametrize(("batch_size", "shards"), [*itertools.product((1, 2, 5, 6), (1, 2, 3, 8))])
def test_positions_partition_the_global_batch(batch_size: int, shards: int) -> None:
    parts = [batch_positions(batch_size, shard, shards) for shard in range(shards)]
    assert all(len(part) == batch_size for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(batch_size * shards))


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_partners_share_a_shard(shards: int) -> None:
    for shard in range(shards):
        positions = batch_positions(6, shard, shards)
        np.testing.assert_array_equal(positions[::-1], 6 * shards - 1 - positions)


def step_images(sampler: TrainingSampler, step: int, micro: int) -> dict[int, int]:
    """Return image by position in the global batch."""
    epoch, slots = sampler.slots(step, micro)
    return dict(zip(sampler.positions(micro), sampler.order(epoch)[slots], strict=True))


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 4), (2, 2), (4, 1)])
def test_layout_does_not_change_a_step(world: int, accumulation: int) -> None:
    whole = TrainingSampler(100, 8, seed=1)
    for step in (0, 5, 12, 40):
        spread: dict[int, int] = {}
        for rank in range(world):
            part = TrainingSampler(100, 8 // (world * accumulation), 1, rank, world, accumulation)
            assert part.steps_per_epoch == whole.steps_per_epoch == 12
            for micro in range(accumulation):
                spread |= step_images(part, step, micro)
        assert spread == step_images(whole, step, 0)


def test_epoch_has_no_image_twice_and_drops_the_rest() -> None:
    sampler = TrainingSampler(103, 8, seed=0)
    seen = [image for step in range(12) for image in step_images(sampler, step, 0).values()]
    assert len(seen) == len(set(seen)) == 96
    np.testing.assert_array_equal(seen, epoch_order(103, 0, 0)[:96])
    assert sampler.slots(12, 0)[0] == 1
    assert list(step_images(sampler, 12, 0).values()) == epoch_order(103, 0, 1)[:8].tolist()


def test_every_image_has_its_turn() -> None:
    sampler = TrainingSampler(20, 8, seed=0)
    seen = {image for step in range(40) for image in step_images(sampler, step, 0).values()}
    assert seen == set(range(20))


def test_micro_batches_start_anywhere_at_once() -> None:
    sampler = TrainingSampler(1_281_167, 128, seed=0, world=8, accumulation=2)
    start = time.perf_counter()
    requests = sampler.micro_batches(300 * sampler.steps_per_epoch - 2, 10**9)
    step = 300 * sampler.steps_per_epoch
    assert list(itertools.islice(requests, 5)) == [
        (step - 2, 0),
        (step - 2, 1),
        (step - 1, 0),
        (step - 1, 1),
        (step, 0),
    ]
    assert sampler.slots(step - 1, 0)[0] == 299
    assert time.perf_counter() - start < 0.1


def test_set_smaller_than_a_global_batch() -> None:
    with pytest.raises(UserError, match="has 63 images, fewer than one global batch of 64"):
        TrainingSampler(63, 8, seed=0, world=4, accumulation=2)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world"),
    [(10, 4, 1), (10, 4, 2), (10, 3, 4), (2, 4, 4), (64, 8, 4), (1, 1, 3), (65, 8, 4)],
)
def test_evaluation_sees_every_image_once(num_samples: int, batch_size: int, world: int) -> None:
    ranks = [EvaluationSampler(num_samples, batch_size, rank, world) for rank in range(world)]
    assert len({len(sampler) for sampler in ranks}) == 1
    batches = [sampler.indices(batch) for sampler in ranks for batch in range(len(sampler))]
    assert all(len(indices) == batch_size for indices in batches)
    seen = np.concatenate(batches)
    np.testing.assert_array_equal(np.sort(seen[seen >= 0]), np.arange(num_samples))


def test_equal_size_batches() -> None:
    sizes = [(6, 4), (4, 6), (6, 4), (7, 5), (6, 4), (4, 6), (6, 4), (6, 4)]
    assert [batch.tolist() for batch in equal_size_batches(sizes, 4)] == [
        [1, 5],
        [0, 2, 4],
        [6, 7, -1],
        [3],
    ]
    assert [batch.tolist() for batch in equal_size_batches(sizes, 1)] == [
        [index] for index in (1, 5, 0, 2, 4, 6, 7, 3)
    ]
    for count in range(1, 40):
        for limit in range(1, 10):
            batches = equal_size_batches([(1, 1)] * count, limit)
            assert len({len(batch) for batch in batches}) == 1 and len(batches[0]) <= limit
            assert all(batch[0] >= 0 for batch in batches)
            assert sorted(np.concatenate(batches))[-count:] == list(range(count))


# Groups ------------------------------------------------------------------------------------------

GROUPS = tuple(int(number % 3 == 0) for number in range(100))  # 34 and 66


def test_units_are_of_one_group() -> None:
    sampler = GroupSampler(100, 4, seed=3, world=2, groups=GROUPS)
    # 34 images are filled up to 40, and 66 to 72.
    assert sampler.steps_per_epoch == 14
    orders = [sampler.order(epoch) for epoch in range(3)]
    for order in orders:
        assert len(order) == 112
        counts = np.bincount(order)
        assert (counts >= 1).all() and counts.sum() - 100 == (counts == 2).sum() == 12
        of_group = np.array(GROUPS)[order].reshape(-1, 2)
        np.testing.assert_array_equal(of_group[:, 0], of_group[:, 1])
        changes = (np.diff(of_group[:, 0]) != 0).sum()
        assert 12 < changes < 45  # of 55, if units come in any order
    assert not np.array_equal(orders[0], orders[1])
    again = GroupSampler(100, 4, seed=3, world=2, groups=GROUPS).order(1)
    np.testing.assert_array_equal(again, orders[1])


def test_ranks_share_the_same_groups() -> None:
    """However a global batch is divided, it has the same images; a rank's come in units."""
    whole = GroupSampler(100, 8, seed=3, groups=GROUPS)
    for batch_size, world, accumulation in ((4, 2, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)):
        parts = [
            GroupSampler(100, batch_size, 3, rank, world, accumulation, groups=GROUPS)
            for rank in range(world)
        ]
        assert parts[0].steps_per_epoch == whole.steps_per_epoch
        for step in (0, 5, 13, 14, 29):
            epoch, slots = whole.slots(step, 0)
            expected = whole.order(epoch)[slots]
            seen = []
            for part in parts:
                for micro in range(accumulation):
                    own_epoch, own = part.slots(step, micro)
                    assert own_epoch == epoch == step // 14
                    images = part.order(epoch)[own]
                    if batch_size == 2:
                        assert GROUPS[images[0]] == GROUPS[images[1]]
                    seen += images.tolist()
            assert sorted(seen) == sorted(expected.tolist())


def test_small_groups_are_filled_up() -> None:
    sampler = GroupSampler(9, 4, seed=0, groups=(0,) * 8 + (1,))
    counts = np.bincount(sampler.order(0))
    assert counts.tolist() == [1] * 8 + [4]
    assert sampler.steps_per_epoch == 3
    assert GroupSampler(3, 1, seed=0, groups=(0, 0, 0)).steps_per_epoch == 4
    with pytest.raises(ValueError, match="9 images have 8 groups"):
        GroupSampler(9, 4, seed=0, groups=(0,) * 8)


def test_groups_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with every batch, where they are many."""
    hashed, counted = [], []

    class Groups(tuple[int, ...]):
        def __hash__(self) -> int:
            hashed.append(len(self))
            return super().__hash__()

    unique = np.unique

    def count(values: object, **options: bool) -> object:
        counted.append(options)
        return unique(values, **options)

    monkeypatch.setattr(np, "unique", count)
    sampler = GroupSampler(100, 4, seed=17, groups=Groups(GROUPS))
    for step in range(9):
        epoch, slots = sampler.slots(step, 0)
        assert len(sampler.order(epoch)[slots]) == 4
    assert not hashed
    assert counted == [{"return_counts": True}, {}]  # for the steps, for the one epoch's order
