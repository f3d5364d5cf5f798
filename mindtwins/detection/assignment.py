"""Which object each anchor or proposal is to find, and what it is to say of it: MMDetection 2.8.0's
`MaxIoUAssigner`, `RandomSampler` and targets, on arrays.

Where there are numbers of objects, 0 stands for none of them (the background), -1 for undecided (a
box that is learned from in no way), and others for the object before: 1 for the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mindtwins.detection.boxes import RATIOS, anchors_of_level, encode, overlaps

# (n) -> int64 (n,), the numbers from 0 on in random order.
Permute = Callable[[int], np.ndarray]

MASK_SIDE = 28
UNDECIDED = -1


@dataclass(frozen=True)
class Rule:
    """How boxes are assigned to the object that they overlap most.

    Attributes:
        positive: from this intersection over union on, a box is to find the object.
        negative: below it, a box is to find nothing.
        least: an object that no box overlaps more than others takes those of its best overlap, if
            that is so much.
    """

    positive: float
    negative: float
    least: float


RETINANET = Rule(0.5, 0.4, 0.0)
PROPOSAL_RULE = Rule(0.7, 0.3, 0.3)
SECOND_STAGE = Rule(0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Sampling:
    """How many of the boxes are learned from.

    Attributes:
        count: of a picture.
        positive: the largest part of them that is to find an object.
    """

    count: int
    positive: float

    @property
    def most_positive(self) -> int:
        """How many at most find an object."""
        return int(self.count * self.positive)


PROPOSAL_SAMPLING = Sampling(256, 0.5)
SECOND_STAGE_SAMPLING = Sampling(512, 0.25)


def assign(boxes: np.ndarray, objects: np.ndarray, rule: Rule) -> np.ndarray:
    """Return the number of each box's object, int64 (n,).

    Args:
        boxes: (n, 4).
        objects: (m, 4).
        rule: which overlaps count.
    """
    if not len(objects):
        return np.zeros(len(boxes), dtype=np.int64)
    shared = overlaps(objects, boxes)
    most = shared.max(axis=0)
    numbers = np.where(most < np.float32(rule.negative), 0, UNDECIDED)
    found = most >= np.float32(rule.positive)
    numbers[found] = shared.argmax(axis=0)[found] + 1
    # An object's best boxes are its own, whatever they overlap more; the last object wins.
    for number, row in enumerate(shared, start=1):
        best = row.max(initial=0)
        if best >= np.float32(rule.least):
            numbers[row == best] = number
    return numbers


def sample(numbers: np.ndarray, sampling: Sampling, permute: Permute) -> tuple[np.ndarray, ...]:
    """Return which boxes are learned from: those with an object, and those without; ascending.

    Args:
        numbers: of the boxes' objects, (n,).
        sampling: how many.
        permute: is asked for an order where there are too many to choose from, first of those with
            an object.
    """

    def choose(among: np.ndarray, count: int) -> np.ndarray:
        return among if len(among) <= count else np.sort(among[permute(len(among))[:count]])

    positive = choose(np.flatnonzero(numbers > 0), sampling.most_positive)
    negative = choose(np.flatnonzero(numbers == 0), sampling.count - len(positive))
    return positive, negative


def anchor_targets(
    anchors: np.ndarray,
    valid: np.ndarray,
    objects: np.ndarray,
    labels: np.ndarray,
    background: int,
    rule: Rule,
    sampling: Sampling | None,
    permute: Permute,
) -> tuple[np.ndarray, np.ndarray]:
    """What a head on anchors is to say of a picture.

    Args:
        anchors: of all levels, (n, 4).
        valid: which of them are within the padded picture; see `valid_anchors`. (n,).
        objects: the boxes, (m, 4).
        labels: their classes, (m,).
        background: the label of what is no object.
        rule: which object an anchor is to find.
        sampling: how many anchors are learned from; None: all that are not undecided.
        permute: as `sample`.

    Returns:
        int32 (n,), the classes, -1 for anchors that are not learned from; and float32 (n, 4), the
        deltas to the objects, 0 where there is none.
    """
    inside = np.flatnonzero(valid)
    numbers = assign(anchors[inside], objects, rule)
    if sampling is None:
        positive, negative = np.flatnonzero(numbers > 0), np.flatnonzero(numbers == 0)
    else:
        positive, negative = sample(numbers, sampling, permute)
    classes = np.full(len(anchors), UNDECIDED, dtype=np.int32)
    classes[inside[negative]] = background
    deltas = np.zeros((len(anchors), 4), dtype=np.float32)
    if len(positive):
        own, chosen = inside[positive], numbers[positive] - 1
        classes[own] = labels[chosen]
        deltas[own] = encode(anchors[own], objects[chosen], (1, 1, 1, 1))
    return classes, deltas


def valid_anchors(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    per_pixel: int,
    height: int,
    width: int,
) -> np.ndarray:
    """Return which anchors are of pixels of a picture, rather than of what fills up its batch.

    Args:
        sizes: the (height, width) of the levels.
        strides: of the levels.
        per_pixel: anchors of a pixel.
        height: of the picture when it was padded by itself.
        width: of it.

    Returns:
        bool (n,), for all levels: row by row, pixel by pixel.
    """
    flags = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        inside = np.zeros((rows, columns, per_pixel), dtype=bool)
        inside[: math.ceil(height / stride), : math.ceil(width / stride)] = True
        flags.append(inside.ravel())
    return np.concatenate(flags)


@dataclass(frozen=True)
class AnchorTask:
    """What a head on anchors learns.

    Attributes:
        strides: of the levels, in pixels.
        scales: of the anchors' sides, in strides.
        num_classes: without the background; 1: all objects are of the class 0.
        rule: which object an anchor is to find.
        sampling: how many anchors are learned from; None: all that are not undecided.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    num_classes: int
    rule: Rule
    sampling: Sampling | None = None

    def targets(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        padded: tuple[int, int],
        batch: tuple[int, int],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is to be said of a picture; see `anchor_targets`.

        Args:
            boxes: of its objects, (m, 4).
            labels: their classes, (m,).
            padded: the (height, width) of the picture when it was padded by itself.
            batch: those of its batch, multiples of 32.
            rng: draws which anchors are learned from.
        """
        sizes, anchors = _all_anchors(self.strides, self.scales, *batch)
        per_pixel = len(RATIOS) * len(self.scales)
        valid = valid_anchors(sizes, self.strides, per_pixel, *padded)
        if self.num_classes == 1:
            labels = np.zeros_like(labels)
        how = self.rule, self.sampling, rng.permutation
        return anchor_targets(anchors, valid, boxes, labels, self.num_classes, *how)


@functools.lru_cache(maxsize=32)
def _all_anchors(
    strides: tuple[int, ...], scales: tuple[float, ...], height: int, width: int
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The (height, width) of every level of images of such a size, and all anchors."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    levels = [
        anchors_of_level(*size, stride, scales) for size, stride in zip(sizes, strides, strict=True)
    ]
    anchors = np.concatenate(levels)
    anchors.flags.writeable = False
    return sizes, anchors


@dataclass(frozen=True)
class SampledRegions:
    """The regions of a picture that the second stage learns from, those of objects first.

    Attributes:
        boxes: float32 (n, 4).
        labels: int32 (n,): their classes, or the background.
        deltas: float32 (n, 4): from the boxes to the objects; 0 where there is none.
        numbers: int64 (p,): the objects of the first p, from 0 on.
    """

    boxes: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    numbers: np.ndarray


def sample_regions(
    proposals: np.ndarray,
    objects: np.ndarray,
    labels: np.ndarray,
    background: int,
    stds: Sequence[float],
    permute: Permute,
    sampling: Sampling = SECOND_STAGE_SAMPLING,
) -> SampledRegions:
    """Choose regions among a picture's proposals, and its objects themselves.

    Args:
        proposals: (n, 4).
        objects: (m, 4).
        labels: their classes, (m,).
        background: the label of what is no object.
        stds: what the deltas are divided by, four.
        permute, sampling: as `sample`.
    """
    own = np.arange(1, len(objects) + 1)
    numbers = np.concatenate([own, assign(proposals, objects, SECOND_STAGE)])
    boxes = np.concatenate([objects, proposals]).astype(np.float32)
    positive, negative = sample(numbers, sampling, permute)
    chosen = numbers[positive] - 1
    regions = boxes[np.concatenate([positive, negative])]
    classes = np.full(len(regions), background, dtype=np.int32)
    deltas = np.zeros((len(regions), 4), dtype=np.float32)
    if len(positive):
        classes[: len(positive)] = labels[chosen]
        deltas[: len(positive)] = encode(boxes[positive], objects[chosen], stds)
    return SampledRegions(regions, classes, deltas, chosen)


def mask_targets(boxes: np.ndarray, numbers: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """What the mask head is to say of regions: its object's mask within each, (p, 28, 28) of 0, 1.

    The bitmap is averaged over the samples of each cell as RoIAlign's; at half and more it is 1.

    Args:
        boxes: (p, 4), in pixels of the padded picture.
        numbers: of the regions' objects, from 0 on, (p,).
        masks: uint8 (m, height, width), padded as the picture is.
    """
    height, width = masks.shape[1:]
    limits = np.array([width, height] * 2, dtype=np.float32)
    targets = np.zeros((len(boxes), MASK_SIDE, MASK_SIDE), dtype=np.uint8)
    for target, box, number in zip(targets, boxes.clip(0, limits), numbers, strict=True):
        x1, y1, x2, y2 = box
        # No sample of a region is further than a pixel away from it.
        rows = slice(max(math.floor(y1) - 1, 0), math.ceil(y2) + 1)
        columns = slice(max(math.floor(x1) - 1, 0), math.ceil(x2) + 1)
        down = _averages(y1, y2, height)[:, rows]
        across = _averages(x1, x2, width)[:, columns]
        target[...] = down @ masks[number, rows, columns] @ across.T >= 0.5
    return targets


def _averages(start: np.float32, stop: np.float32, length: int) -> np.ndarray:
    """Weights of a line's pixels in the mean of each cell's samples, float32 (28, length)."""
    begin, end = start - np.float32(0.5), stop - np.float32(0.5)
    cell = (end - begin) / np.float32(MASK_SIDE)
    samples = math.ceil(cell)
    weights = np.zeros((MASK_SIDE, length), dtype=np.float32)
    if not samples:
        return weights
    cells = np.arange(MASK_SIDE, dtype=np.float32)[:, None]
    within = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * cell / np.float32(samples)
    places = begin + cells * cell + within
    outside = (places < -1) | (places > length)
    places = np.maximum(places, 0)
    before = np.minimum(places.astype(np.int64), length - 1)
    after = np.minimum(before + 1, length - 1)
    part = np.where(before == length - 1, 0, places - before).astype(np.float32)
    rows = np.broadcast_to(np.arange(MASK_SIDE)[:, None], places.shape)
    share = np.where(outside, 0, np.float32(1 / samples)).astype(np.float32)
    np.add.at(weights, (rows, before), (1 - part) * share)
    np.add.at(weights, (rows, after), part * share)
    return weights
