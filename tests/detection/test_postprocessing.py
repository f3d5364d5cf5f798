"""Boxes and what is done after the network, against torch and definitions written out."""

import numpy as np
import pytest
import torch
from mindspore import Tensor

from mindtwins.detection import boxes, masks, postprocessing, retinanet
from mindtwins.detection.detections import Geometry
from mindtwins.detection.mask_rcnn import find_objects, pool
from mindtwins.detection.postprocessing import VERSIONS, PostProcessing
from mindtwins.errors import UserError
from mindtwins.reference import detection

RNG = np.random.default_rng(0)


def random_boxes(count, size=200):
    corners = RNG.uniform(0, size, (count, 2))
    return np.c_[corners, corners + RNG.uniform(1, size / 3, (count, 2))].astype(np.float32)


def test_first_anchors():
    """Published values: area (4 x 8)^2, height to width 1/2."""
    anchors = boxes.anchors_of_level(2, 3, 8, retinanet.RetinaNet.scales)
    assert anchors.shape == (2 * 3 * 9, 4) and anchors.dtype == np.float32
    np.testing.assert_allclose(anchors[0], [-22.627417, -11.313708, 22.627417, 11.313708])
    np.testing.assert_allclose(anchors[9 + 3], [8 - 16, -16, 8 + 16, 16])
    assert anchors[27:30, 1].tolist() == (anchors[0:3, 1] + 8).tolist()  # the next row


@pytest.mark.parametrize("scales", [(8,), retinanet.RetinaNet.scales])
def test_anchors_decoded_boxes_and_overlaps_as_in_torch(scales):
    anchors = boxes.anchors_of_level(5, 7, 16, scales)
    np.testing.assert_array_equal(anchors, detection.anchors_of((5, 7), 16, scales).numpy())
    deltas = RNG.normal(0, 2, anchors.shape).astype(np.float32)  # some beyond the limit
    stds = (0.1, 0.1, 0.2, 0.2)
    for std in (stds, (1, 1, 1, 1)):
        found = boxes.decode(anchors, deltas, std, 70, 100)
        expected = detection.decode(*map(torch.from_numpy, (anchors, deltas)), std, (70, 100))
        # Before they are clipped, sides are up to 5,000 pixels.
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_deltas_lead_back():
    first, second = random_boxes(50), random_boxes(50)
    deltas = boxes.encode(first, second, (0.1, 0.1, 0.2, 0.2))
    back = boxes.decode(first, deltas, (0.1, 0.1, 0.2, 0.2), 1000, 1000)
    np.testing.assert_allclose(back, second, atol=1e-4)


def test_overlaps():
    first = np.array([[0, 0, 2, 2], [5, 5, 5, 5]], np.float32)
    second = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [9, 9, 10, 10], [5, 5, 5, 5]], np.float32)
    np.testing.assert_allclose(
        boxes.overlaps(first, second), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]], rtol=1e-6
    )


def test_suppression_by_class_as_in_torch():
    """All classes at once, shifted apart, there; class by class here."""
    candidates = random_boxes(600, 60)
    scores = RNG.permutation(600).astype(np.float32) / 600
    classes = RNG.integers(0, 7, 600)
    kept = postprocessing.suppress_by_class(candidates, scores, classes, 0.5)
    tensors = map(torch.from_numpy, (candidates, scores, classes))
    assert kept.tolist() == detection.batched_nms(*tensors, 0.5).tolist()
    assert 50 < len(kept) < 590


def test_sigmoid_and_softmax():
    logits = np.array([[-200, -3, 0, 2, 90]], np.float32)
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(postprocessing.sigmoid(logits), tensor.sigmoid(), rtol=1e-6)
    np.testing.assert_allclose(postprocessing.softmax(logits), tensor.softmax(1), rtol=1e-6)


def test_the_best():
    scores = np.array([1, 5, 3, 5, 2, 3], np.float32)
    assert postprocessing.best(scores, 3).tolist() == [1, 3, 2]
    assert postprocessing.best(scores, 9).tolist() == [1, 3, 2, 5, 4, 0]


LOGITS = RNG.normal(-4, 1.5, (1500, 6)).astype(np.float32)


def test_anchors_of_the_likeliest_classes():
    rows, classes, scores = postprocessing.level_pairs(LOGITS, VERSIONS["2.8.0"])
    likely = 1 / (1 + np.exp(-LOGITS.astype(float)))
    chosen = np.argsort(-likely.max(1))[:1000]
    expected = {(r, c) for r in chosen for c in range(6) if likely[r, c] > 0.05}
    assert {*zip(rows.tolist(), classes.tolist(), strict=True)} == expected
    np.testing.assert_allclose(scores, likely[rows, classes], rtol=1e-5)


def test_pairs_above_the_threshold():
    rows, classes, scores = postprocessing.level_pairs(LOGITS, VERSIONS["3.x"])
    likely = 1 / (1 + np.exp(-LOGITS.astype(float)))
    chosen = np.argsort(-likely.ravel())[:1000]
    assert (likely.ravel()[chosen] > 0.05).all()
    assert (rows * 6 + classes).tolist() == chosen.tolist()
    assert len(scores) == 1000


def test_versions_differ_in_pairs_that_an_anchor_has_too_many_of():
    """One anchor that is likely to be all classes is one of 1000 anchors, and many of 1000 pairs"""
    counts = [len(postprocessing.level_pairs(LOGITS, v)[0]) for v in VERSIONS.values()]
    assert counts[0] > counts[1] == 1000


def test_rescaling():
    factor = np.array([1.8734375, 1.8735363] * 2, np.float32)
    found = random_boxes(1000)
    np.testing.assert_array_equal(VERSIONS["2.8.0"].rescale(found, factor), found / factor)
    inverse = torch.tensor([1 / float(value) for value in factor])
    expected = (torch.from_numpy(found) * inverse).numpy()
    np.testing.assert_array_equal(VERSIONS["3.x"].rescale(found, factor), expected)
    assert (expected != found / factor).mean() > 0.1


def test_empty_boxes():
    found = np.array([[1, 1, 1, 4], [1, 1, 2, 2], [3, 3, 3, 3]], np.float32)
    assert VERSIONS["2.8.0"].not_empty(found).tolist() == [True, True, True]
    assert VERSIONS["3.x"].not_empty(found).tolist() == [False, True, False]


def test_unknown_way():
    with pytest.raises(UserError, match="top_k is 'boxes'; it must be one of anchors, pairs"):
        PostProcessing(top_k="boxes")


def test_mask_rcnn_of_both_versions():
    """The same boxes but for the last bits, since a shift in other pixels rounds otherwise."""
    regions = random_boxes(300, 120)
    logits = RNG.normal(0, 2, (300, 5)).astype(np.float32)
    deltas = RNG.normal(0, 1, (300, 16)).astype(np.float32)
    factor = np.array([1.5, 1.6, 1.5, 1.6], np.float32)
    geometry = Geometry(150, 160, factor, 94, 107)
    found = [find_objects(regions, logits, deltas, geometry, v) for v in VERSIONS.values()]
    for network, objects in found:
        assert len(objects) > 50
        np.testing.assert_allclose(network / factor, objects.boxes, rtol=3e-7)
        assert objects.boxes[:, 2].max() <= 160 / 1.5 + 1e-3
    assert (found[1][0] / factor == found[1][1].boxes).all()
    np.testing.assert_allclose(found[0][1].boxes[:50], found[1][1].boxes[:50], rtol=1e-5)


def test_masks_are_pasted_as_by_torch():
    probabilities = RNG.random((40, 28, 28), np.float32).repeat(1, 0)
    smooth = torch.nn.functional.avg_pool2d(torch.from_numpy(probabilities)[:, None], 5, 1, 2)
    probabilities = smooth[:, 0].numpy()
    places = random_boxes(40, 60) - 10  # some beyond the picture
    found = masks.paste(probabilities, places, 50, 70)
    expected = [
        detection.paste(torch.from_numpy(mask), torch.from_numpy(box), 50, 70).numpy()
        for mask, box in zip(probabilities, places, strict=True)
    ]
    assert found.shape == (40, 50, 70) and 0.001 < found.mean() < 0.5
    np.testing.assert_array_equal(found, expected)


def test_a_mask_without_extent_stays_where_its_box_is():
    found = masks.paste(np.ones((2, 28, 28)), np.array([[3, 4, 3, 4], [5, 6, 9, 6]]), 50, 70)
    assert not found[:, 8:].any() and not found[:, :, 11:].any()


def test_no_masks():
    assert masks.paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), 5, 7).shape == (0, 5, 7)


def test_level_by_size():
    """A region of a level's map whose pixels are the level's number has that number."""
    sides = [40, 111.9, 112, 223.9, 224, 447.9, 447.9999, 448, 3000]
    rois = np.array([[0, 0, 0, side, side] for side in sides], np.float32)
    numbers = np.arange(4, dtype=np.float32)
    maps = [np.full((1, 1000, 1000, 1), number, np.float32) for number in numbers]
    found = pool(tuple(map(Tensor, maps)), Tensor(rois), 1).asnumpy()[:, 0, 0, 0]
    # log2 in float32 is 3 already just below eight times 56 pixels.
    # Sums of up to ten thousand samples.
    np.testing.assert_allclose(found, [0, 0, 1, 1, 2, 2, 3, 3, 3], atol=1e-4)
    levels = [torch.from_numpy(m).permute(0, 3, 1, 2) for m in maps]
    expected = detection.pool(levels, 0, torch.from_numpy(rois[:, 1:]), 1)
    np.testing.assert_allclose(found, expected[:, 0, 0, 0], atol=1e-4)
