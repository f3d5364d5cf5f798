"""Non-maximum suppression, by the kernel and by NumPy, against ten lines of Python."""

import numpy as np
import pytest

from mindtwins.layers import kernels, suppress, suppression


@pytest.fixture(params=["kernel", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(suppression, "library", lambda: None)
    elif not kernels.available():
        pytest.skip(kernels.status())


def by_definition(boxes, scores, threshold):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            x1, y1 = np.maximum(boxes[i, :2], boxes[j, :2])
            x2, y2 = np.minimum(boxes[i, 2:], boxes[j, 2:])
            both = max(x2 - x1, 0) * max(y2 - y1, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if both > threshold * (sum(areas) - both):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_whole_pixels_and_equal_scores(way, threshold):
    """Where all is exact, ties of scores and overlaps of just the threshold included."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (500, 2))
    boxes = np.c_[corners, corners + rng.integers(1, 30, (500, 2))].astype(np.float32)
    scores = rng.integers(0, 20, 500).astype(np.float32)
    kept = suppress(boxes, scores, threshold)
    assert kept.tolist() == by_definition(boxes.astype(float), scores, threshold)
    assert 20 < len(kept) < 490


def test_half_is_not_more_than_half(way):
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 2, 1.01]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert suppress(boxes, scores, 0.5).tolist() == [0, 1]


def test_none(way):
    assert suppress(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5).shape == (0,)


def test_boxes_without_area_are_kept(way):
    boxes = np.array([[1, 1, 1, 5], [1, 1, 1, 5]], np.float32)
    assert suppress(boxes, np.array([0.5, 0.6], np.float32), 0.5).tolist() == [1, 0]
