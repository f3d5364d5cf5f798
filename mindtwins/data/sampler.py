"""Which image is seen when and where: by arithmetic from the seed, with no state to store.

A *global batch* is what one optimizer step sees: `world` ranks times `accumulation` micro-batches
of `batch_size` images. Its composition depends on (seed, step) alone, so 2 ranks x 64, 1 rank x 128
and 1 rank x 32 accumulated 4 times see the same images at every step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from mindtwins.data.randomness import Purpose, generator_at
from mindtwins.errors import UserError


@lru_cache(maxsize=2)  # two: workers prefetch across the end of an epoch
def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch: an int64 permutation (num_samples,)."""
    order = generator_at(seed, Purpose.SHUFFLE, epoch).permutation(num_samples)
    order.flags.writeable = False
    return order


def batch_positions(batch_size: int, shard: int, num_shards: int) -> np.ndarray:
    """Return the positions within the global batch that one shard of it holds.

    Mixing pairs position g with position B - 1 - g of the global batch of B images. Each shard
    takes a run from the front and its mirror image from the back, so both partners of a pair are in
    the same shard, and flipping the shard pairs them as flipping the global batch would. (An odd
    `batch_size` is split unevenly; it is still a partition, but not one of pairs.)

    Args:
        batch_size: images per shard.
        shard: 0 to num_shards - 1.
        num_shards: ranks times micro-batches.

    Returns:
        int64 (batch_size,), ascending.
    """
    front, back = batch_size - batch_size // 2, batch_size // 2
    front_start = shard * front
    back_start = num_shards * front + (num_shards - 1 - shard) * back
    return np.concatenate(
        [
            np.arange(front_start, front_start + front),
            np.arange(back_start, back_start + back),
        ]
    )


@dataclass(frozen=True)
class TrainingSampler:
    """The training order, sharded over ranks and micro-batches.

    An epoch's last, incomplete global batch is dropped; the next epoch shuffles anew.

    Args:
        num_samples: images in the data set.
        batch_size: images per rank and micro-batch.
        seed: of the run.
        rank: of this process.
        world: number of processes.
        accumulation: micro-batches per optimizer step.

    Raises:
        UserError: the data set is smaller than one global batch.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise UserError(
                f"the training set has {self.num_samples} images, fewer than one global batch of "
                f"{self.global_batch}: reduce the batch size"
            )

    @property
    def global_batch(self) -> int:
        """Images per optimizer step, over all ranks and micro-batches."""
        return self.batch_size * self.world * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.num_samples // self.global_batch

    def micro_batches(self, start_step: int, stop_step: int) -> Iterator[tuple[int, int]]:
        """Yield (step, micro) for the optimizer steps in [start_step, stop_step)."""
        for step in range(start_step, stop_step):
            for micro in range(self.accumulation):
                yield step, micro

    def positions(self, micro: int) -> np.ndarray:
        """Return this rank's positions in the global batch for a micro-batch, int64 (b,)."""
        shard = micro * self.world + self.rank
        return batch_positions(self.batch_size, shard, self.world * self.accumulation)

    def slots(self, step: int, micro: int) -> tuple[int, np.ndarray]:
        """Return the epoch and the slots in its order that a micro-batch consists of, (b,)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.global_batch + self.positions(micro)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of the images in an epoch, int64 (num_samples,)."""
        return epoch_order(self.num_samples, self.seed, epoch)


@dataclass(frozen=True)
class GroupSampler(TrainingSampler):
    """The training order where images that are seen together are of one group.

    An epoch is a sequence of units of a few images of one group each, in random order. To be whole,
    a group is filled up with images that it has, to a multiple of the global batch: so every image
    is seen in every epoch, some twice. It depends on (seed, epoch) and the size of the global batch
    alone, and a rank's micro-batch is a run of units.

    Args:
        groups: the number of each image's group.
        unit: images that are seen together: what the recipe has on one device.
    """

    groups: tuple[int, ...] = ()
    unit: int = 2

    def __post_init__(self) -> None:
        if len(self.groups) != self.num_samples:
            raise ValueError(f"{self.num_samples} images have {len(self.groups)} groups")
        super().__post_init__()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, the groups filled up."""
        return self._steps_per_epoch

    def positions(self, micro: int) -> np.ndarray:
        """Return this rank's positions in the global batch for a micro-batch: a run, int64 (b,)."""
        start = (micro * self.world + self.rank) * self.batch_size
        return np.arange(start, start + self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of the images in an epoch, in which some occur twice, int64 (n,)."""
        return _grouped_order(self._groups, self._multiple, self.unit, self.seed, epoch)

    # Both are asked for with every batch, where there may be 100,000 images.
    @cached_property
    def _steps_per_epoch(self) -> int:
        _, counts = np.unique(self.groups, return_counts=True)
        return int((-(-counts // self._multiple) * self._multiple).sum()) // self.global_batch

    @cached_property
    def _groups(self) -> bytes:
        """The groups, int64, as an object that keeps its hash."""
        return np.array(self.groups, dtype=np.int64).tobytes()

    @property
    def _multiple(self) -> int:
        """What a group's number of images is filled up to a multiple of."""
        return math.lcm(self.global_batch, self.unit)


@lru_cache(maxsize=2)  # as `epoch_order`
def _grouped_order(groups: bytes, multiple: int, unit: int, seed: int, epoch: int) -> np.ndarray:
    rng = generator_at(seed, Purpose.SHUFFLE, epoch)
    of_image = np.frombuffer(groups, dtype=np.int64)
    units = []
    for group in np.unique(of_image):
        members = rng.permutation(np.flatnonzero(of_image == group))
        units.append(np.resize(members, -(-len(members) // multiple) * multiple).reshape(-1, unit))
    order = rng.permutation(np.concatenate(units)).reshape(-1)
    order.flags.writeable = False
    return order


@dataclass(frozen=True)
class EvaluationSampler:
    """The evaluation order, in which every image occurs exactly once over all ranks.

    All ranks run the same number of batches of the same shape, so that collective operations line
    up and one compiled graph serves; the rows left over are filled with -1.

    Args:
        num_samples: images in the data set.
        batch_size: images per rank and batch.
        rank: of this process.
        world: number of processes.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        """Return the number of batches that each rank runs."""
        return -(-self.num_samples // (self.batch_size * self.world))

    def indices(self, batch: int) -> np.ndarray:
        """Return the images of this rank's batch, int64 (batch_size,); -1 where there is none."""
        start = (batch * self.world + self.rank) * self.batch_size
        indices = np.arange(start, start + self.batch_size)
        indices[indices >= self.num_samples] = -1
        return indices


def equal_size_batches(sizes: list[tuple[int, int]], batch_size: int) -> list[np.ndarray]:
    """Group pictures by size, in batches that are equally long within a group.

    Args:
        sizes: (width, height) of every picture.
        batch_size: the most pictures per batch.

    Returns:
        int64 (b,) each, b at most `batch_size`: pictures, filled up with -1.
    """
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[size].append(index)
    batches = []
    for _, members in sorted(groups.items()):
        count = -(-len(members) // batch_size)
        rows = -(-len(members) // count)
        filled = np.full(count * rows, -1, dtype=np.int64)
        filled[: len(members)] = members
        batches += list(filled.reshape(count, rows))
    return batches
