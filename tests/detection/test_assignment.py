"""Assignments and targets against what MMDetection computed with the same draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindtwins.detection.assignment import (
    PROPOSAL_RULE,
    PROPOSAL_SAMPLING,
    RETINANET,
    SECOND_STAGE,
    Permute,
    Rule,
    Sampling,
    anchor_targets,
    assign,
    mask_targets,
    sample,
    sample_regions,
    valid_anchors,
)
from mindtwins.detection.boxes import anchors_of_level

CLASSES = 5
STDS = (0.1, 0.1, 0.2, 0.2)
NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def theirs(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "fixtures" / f"{name}.npz"))


def in_turn(*orders: np.ndarray) -> Permute:
    """Gives these orders, one after another."""
    waiting = list(orders)

    def permute(count: int) -> np.ndarray:
        order = waiting.pop(0)
        assert len(order) == count
        return order

    return permute


@pytest.mark.parametrize(
    ("name", "rule"), [("retina", RETINANET), ("rpn", PROPOSAL_RULE), ("box", SECOND_STAGE)]
)
def test_assignment(name: str, rule: Rule) -> None:
    data = theirs("assign")
    found = assign(data["boxes"], data["gt_boxes"], rule)
    np.testing.assert_array_equal(found, data[f"{name}_gt_inds"])
    assert len(np.unique(found)) >= 7


def test_assignment_without_objects() -> None:
    data = theirs("assign")
    found = assign(data["boxes"], NOTHING[0], SECOND_STAGE)
    np.testing.assert_array_equal(found, data["nothing_gt_inds"])
    assert assign(NOTHING[0], data["gt_boxes"], SECOND_STAGE).shape == (0,)


def test_an_object_takes_its_best_boxes() -> None:
    """The later of two objects wins, and all that are equally good are taken."""
    objects = np.float32([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
    boxes = np.float32([[0, 0, 10, 11], [0, 0, 10, 10], [54, 50, 64, 60], [46, 50, 56, 60]])
    assert assign(boxes, objects, PROPOSAL_RULE).tolist() == [2, 1, 3, 3]
    # Where nothing is overlapped, an object takes all with least 0: a quirk that is theirs.
    far = np.float32([[200, 200, 210, 210]])
    assert assign(boxes, far, RETINANET).tolist() == [1, 1, 1, 1]
    assert assign(boxes, far, PROPOSAL_RULE).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "strides", "scales", "background"),
    [
        ("retinanet_loss", (8, 16, 32, 64, 128), [4 * 2 ** (i / 3) for i in range(3)], CLASSES),
        ("rpn_loss", (4, 8, 16, 32, 64), [8], 1),
    ],
)
def test_targets_of_anchors(
    name: str, strides: tuple[int, ...], scales: list[float], background: int
) -> None:
    """Of a picture with objects, and of a smaller one without any."""
    data = theirs(name)
    sizes = [(int(height), int(width)) for height, width in data["sizes"]]
    anchors = np.concatenate(
        [
            anchors_of_level(*size, stride, scales)
            for size, stride in zip(sizes, strides, strict=True)
        ]
    )
    is_rpn = background == 1
    labels = np.zeros_like(data["gt_labels"]) if is_rpn else data["gt_labels"]
    counts = []
    for number, truth in enumerate([(data["gt_boxes"], labels), NOTHING]):
        valid = valid_anchors(sizes, strides, 3 * len(scales), *data["pad_shapes"][number].tolist())
        how = (RETINANET, None, in_turn())
        if is_rpn:
            how = (PROPOSAL_RULE, PROPOSAL_SAMPLING, in_turn(data[f"permutation_{number}"]))
        classes, deltas = anchor_targets(anchors, valid, *truth, background, *how)
        counted = data["label_weights"][number] > 0
        np.testing.assert_array_equal(classes >= 0, counted)
        np.testing.assert_array_equal(classes[counted], data["labels"][number][counted])
        has_object = (classes >= 0) & (classes < background)
        np.testing.assert_array_equal(has_object, data["box_weights"][number][:, 0] > 0)
        np.testing.assert_allclose(deltas, data["box_targets"][number], rtol=1e-5, atol=1e-6)
        counts.append((max(has_object.sum(), 1), max((classes == background).sum(), 1)))
    assert np.sum(counts, axis=0).tolist() == [data["positives"], data["negatives"]]
    assert counts[0][0] > 10 and not valid.all()


def test_regions_of_the_second_stage() -> None:
    data = theirs("second_stage_loss")
    sampling = Sampling(48, 0.25)
    truth = data["gt_boxes"], data["gt_labels"]
    first = sample_regions(
        data["proposals_0"],
        *truth,
        CLASSES,
        STDS,
        in_turn(data["permutation_0"], data["permutation_1"]),
        sampling,
    )
    second = sample_regions(
        data["proposals_1"], *NOTHING, CLASSES, STDS, in_turn(data["permutation_2"]), sampling
    )
    # Theirs are positives and negatives of one picture after another, too.
    np.testing.assert_array_equal(np.concatenate([first.boxes, second.boxes]), data["rois"][:, 1:])
    np.testing.assert_array_equal(np.concatenate([first.labels, second.labels]), data["labels"])
    found = np.concatenate([first.deltas, second.deltas])
    np.testing.assert_allclose(found, data["box_targets"], rtol=1e-5, atol=1e-6)
    assert (len(first.numbers), len(second.numbers)) == (12, 0)
    np.testing.assert_array_equal(data["gt_labels"][first.numbers], data["mask_labels"])
    targets = mask_targets(data["mask_boxes"], first.numbers, data["gt_masks"])
    np.testing.assert_array_equal(targets, data["mask_targets"])


def test_few_boxes_are_all_taken() -> None:
    numbers = np.array([0, 2, -1, 0, 1, -1])
    positive, negative = sample(numbers, Sampling(8, 0.5), in_turn())
    assert (positive.tolist(), negative.tolist()) == ([1, 4], [0, 3])
    # More of those without an object where there are few with one.
    positive, negative = sample(np.array([1] + [0] * 9), Sampling(6, 0.5), lambda n: np.arange(n))
    assert (positive.tolist(), negative.tolist()) == ([0], [1, 2, 3, 4, 5])


def test_masks_of_regions_that_are_empty_or_outside() -> None:
    masks = np.ones((1, 20, 20), np.uint8)
    boxes = np.float32([[5, 5, 5, 15], [15, 15, 40, 40], [-5, -5, 10, 10], [0, 0, 20, 20]])
    found = mask_targets(boxes, np.zeros(4, np.int64), masks)
    assert not found[0].any()
    assert found[1:].all()  # a region is first cut to the picture
