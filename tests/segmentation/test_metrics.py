"""Areas and metrics against scikit-learn's confusion matrix and scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from mindtwins.errors import UserError
from mindtwins.segmentation.metrics import ConfusionAreas, SegmentationMetrics

CLASSES = 6
NAMES = ("wall", "sky", "chest of drawers", "car", "tree", "sea")


def pictures(labeled: tuple[int, ...], predicted: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """Five predictions and labels of different sizes, right in half of the pixels."""
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(5):
        shape = tuple(rng.integers(20, 60, size=2))
        labels = rng.choice([*labeled, 255], size=shape).astype(np.uint8)
        prediction = rng.choice(predicted, size=shape).astype(np.uint8)
        right = (rng.random(shape) < 0.5) & np.isin(labels, predicted)
        pairs.append((np.where(right, labels, prediction), labels))
    return pairs


def measure(pairs: list[tuple[np.ndarray, ...]]) -> ConfusionAreas:
    areas = ConfusionAreas(CLASSES)
    for prediction, labels in pairs:
        areas.add(prediction, labels)
    return areas


ALL = tuple(range(CLASSES))
CASES = {
    "all classes": (ALL, ALL),
    "never predicted": (ALL, (0, 1, 2, 3)),
    "never labeled": ((0, 1, 2, 3), ALL),
    "never seen": ((0, 2, 3), (0, 2, 3)),
    "one class": ((2,), (2,)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_scikit_learn(case: str) -> None:
    pairs = pictures(*CASES[case])
    prediction, labels = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2))
    prediction, labels = prediction[labels != 255], labels[labels != 255]
    areas = measure(pairs)
    matrix = confusion_matrix(labels, prediction, labels=ALL)
    np.testing.assert_array_equal(areas.intersection, np.diag(matrix))
    np.testing.assert_array_equal(areas.labeled, matrix.sum(1))
    np.testing.assert_array_equal(areas.predicted, matrix.sum(0))

    metrics = areas.metrics()
    found = np.union1d(labels, prediction)
    iou = 100 * jaccard_score(labels, prediction, labels=ALL, average=None, zero_division=0)
    np.testing.assert_allclose(np.array(metrics.iou)[found], iou[found], rtol=1e-14)
    assert np.isnan(np.delete(metrics.iou, found)).all()
    assert metrics.miou == pytest.approx(
        100 * jaccard_score(labels, prediction, labels=found, average="macro"), rel=1e-14
    )
    labeled = np.unique(labels)
    recall = recall_score(labels, prediction, labels=labeled, average=None)
    np.testing.assert_allclose(np.array(metrics.accuracy)[labeled], 100 * recall, rtol=1e-14)
    assert np.isnan(np.delete(metrics.accuracy, labeled)).all()
    assert metrics.macc == pytest.approx(100 * recall.mean(), rel=1e-14)
    assert metrics.aacc == pytest.approx(100 * accuracy_score(labels, prediction), rel=1e-14)
    assert metrics.images == 5


def test_sums_over_processes_are_exact() -> None:
    pairs = pictures(ALL, ALL)
    parts = [measure(pairs[:2]), measure(pairs[2:])]
    total = ConfusionAreas(CLASSES)
    for part in parts:
        total.add_bytes(part.to_bytes())
    assert total.metrics() == measure(pairs).metrics()


def test_large_areas_do_not_overflow() -> None:
    areas = ConfusionAreas(2)
    picture = np.zeros((4, 4), dtype=np.uint8)
    areas.add(picture, picture)
    for _ in range(40):
        areas.add_bytes(areas.to_bytes())
    assert areas.labeled.tolist() == [16 << 40, 0]
    assert areas.metrics().aacc == 100


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (0, 6, "street.png: label 6 is out of range for 6 classes"),
        (0, 254, "street.png: label 254 is out of range"),
        (6, 0, "street.png: prediction 6 is out of range"),
    ],
)
def test_out_of_range(prediction: int, labels: int, message: str) -> None:
    areas = ConfusionAreas(CLASSES)
    maps = (np.full((2, 3), value, dtype=np.uint8) for value in (prediction, labels))
    with pytest.raises(ValueError, match=message):
        areas.add(*maps, "street.png")
    assert areas.images == 0 and not areas.labeled.any()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"a\.png: the prediction is \(2, 3\), but"):
        ConfusionAreas(2).add(np.zeros((2, 3), int), np.zeros((3, 2), int), "a.png")


def test_prediction_of_ignored_pixels_does_not_matter() -> None:
    areas = ConfusionAreas(2)
    areas.add(np.array([[0, 1, 200]]), np.array([[0, 0, 255]]))
    assert (areas.predicted.tolist(), areas.labeled.tolist()) == ([1, 1], [2, 0])


def test_nothing_labeled() -> None:
    areas = ConfusionAreas(2)
    areas.add(np.zeros((2, 2), int), np.full((2, 2), 255))
    with pytest.raises(UserError, match="no labeled pixel was evaluated in 1 pictures: check"):
        areas.metrics()


def test_text() -> None:
    nan = float("nan")
    metrics = SegmentationMetrics(
        miou=61.728395,
        macc=70.0,
        aacc=81.005,
        iou=(100.0, 0.0, 85.185185, nan, nan, nan),
        accuracy=(100.0, nan, 40.0, nan, nan, nan),
        images=3,
    )
    assert str(metrics) == "mIoU 61.73 %, mAcc 70.00 %, aAcc 81.00 %"
    assert metrics.table(NAMES).splitlines() == [
        "class                IoU     Acc",
        "wall              100.00  100.00",
        "sky                 0.00       -",
        "chest of drawers   85.19   40.00",
        "car                    -       -",
        "tree                   -       -",
        "sea                    -       -",
        "mean               61.73   70.00",
        "all pixels                 81.00",
    ]
    assert metrics.score == metrics.record()["miou"] == metrics.miou
