"""What the authors' own versions, MMDetection 2.8.0 with mmcv 1.2.7, gave for the same numbers.

Both the detectors and the PyTorch reference are held to the arrays in `fixtures/`.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from mindtwins.detection import boxes, mask_rcnn, retinanet
from mindtwins.detection.detections import Geometry
from mindtwins.detection.masks import paste
from mindtwins.detection.postprocessing import (
    PostProcessing,
    proposals,
    sigmoid,
    suppress_by_class,
)
from mindtwins.reference import detection

CLASSES = 5


@pytest.fixture
def fixture(request):
    """The arrays of a file, by name; half precision, in which some are stored, as float32."""
    stored = np.load(Path(__file__).parent / "fixtures" / f"{request.param}.npz")
    return {
        key: value.astype(np.float32) if value.dtype == np.float16 else value
        for key, value in stored.items()
    }


def of(name):
    return pytest.mark.parametrize("fixture", [name], indirect=True, ids=[name])


def levels_of(flat, sizes, channels, images=1):
    """Levels (images, channels, height, width), stored one after the other."""
    ends = np.cumsum([images * channels * height * width for height, width in sizes])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(images, channels, *size) for part, size in zip(parts, sizes, strict=True)]


def rows_of(flat, sizes, channels, values):
    """The same as (height * width * anchors, values), of one image."""
    return [
        level[0].transpose(1, 2, 0).reshape(-1, values)
        for level in levels_of(flat, sizes, channels)
    ]


def anchors_of(detector, sizes):
    return [
        boxes.anchors_of_level(*size, stride, detector.scales)
        for size, stride in zip(sizes, detector.strides, strict=True)
    ]


@of("anchors")
@pytest.mark.parametrize(
    ("name", "detector"), [("retina", retinanet.RetinaNet), ("rpn", mask_rcnn.MaskRCNN)]
)
def test_anchors(fixture, name, detector):
    found = np.concatenate(anchors_of(detector, fixture["sizes"]))
    np.testing.assert_array_equal(found, fixture[f"{name}_anchors"])


@of("coder")
@pytest.mark.parametrize(("name", "stds"), [("unit", retinanet.STDS), ("box_head", mask_rcnn.STDS)])
def test_deltas(fixture, name, stds):
    places, moves = fixture["boxes"], fixture["deltas"]
    found = boxes.decode(places, moves, stds, *fixture["max_shape"])
    expected = fixture[f"decoded_{name}"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    reference = detection.decode(
        *map(torch.from_numpy, (places, moves)), stds, fixture["max_shape"].tolist()
    )
    np.testing.assert_allclose(reference, expected, atol=1e-4)
    encoded = boxes.encode(places, fixture["targets"], stds)
    np.testing.assert_allclose(encoded, fixture[f"encoded_{name}"], rtol=1e-5, atol=1e-5)


@of("nms")
@pytest.mark.parametrize("threshold", [50, 70])
def test_suppression(fixture, threshold):
    arrays = fixture["boxes"], fixture["scores"], fixture["labels"]
    expected = fixture[f"keep_{threshold}"].tolist()
    assert suppress_by_class(*arrays, threshold / 100).tolist() == expected
    reference = detection.batched_nms(*map(torch.from_numpy, arrays), threshold / 100)
    assert reference.tolist() == expected


def geometry(fixture, original=(64, 80)):
    factor = fixture.get("scale_factor", np.ones(4, np.float32))
    return Geometry(*map(int, fixture["img_shape"]), factor, *original)


@of("retinanet_test")
@pytest.mark.parametrize("prefix", ["", "low_"])
def test_objects_of_retinanet(fixture, prefix):
    shift = fixture["low_shift"] if prefix else np.float32(0)
    sizes = fixture["sizes"]
    found = retinanet.find_objects(
        rows_of(fixture["logits"] - shift, sizes, 9 * CLASSES, CLASSES),
        rows_of(fixture["deltas"], sizes, 36, 4),
        anchors_of(retinanet.RetinaNet, sizes),
        geometry(fixture),
        PostProcessing(),
    )
    np.testing.assert_array_equal(found.labels, fixture[f"{prefix}labels"])
    np.testing.assert_allclose(found.scores, fixture[f"{prefix}scores"], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, fixture[f"{prefix}boxes"], atol=1e-4)


@of("rpn_test")
def test_proposals(fixture):
    sizes = fixture["sizes"]
    found, scores = proposals(
        [rows.ravel() for rows in rows_of(fixture["logits"], sizes, 3, 1)],
        rows_of(fixture["deltas"], sizes, 12, 4),
        anchors_of(mask_rcnn.MaskRCNN, sizes),
        *map(int, fixture["img_shape"]),
        PostProcessing(),
        per_level=1000,
        overlap=mask_rcnn.PROPOSAL_OVERLAP,
        most=1000,
    )
    np.testing.assert_allclose(scores, fixture["scores"], rtol=1e-5)
    np.testing.assert_allclose(found, fixture["proposals"], atol=1e-4)


class Pool(nn.Cell):
    """The features, and their sum with a weight for each."""

    def __init__(self, weights):
        super().__init__()
        self.weights = Tensor(weights)

    def construct(self, *inputs):
        found = mask_rcnn.pool(inputs[:4], inputs[4], self.weights.shape[1])
        return (found * self.weights).sum(), found


@of("roi_align")
@pytest.mark.parametrize("bins", [7, 14])
def test_features_of_regions(fixture, bins):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    levels = levels_of(fixture["features"], fixture["sizes"], channels=2, images=2)
    inputs = (*(Tensor(level.transpose(0, 2, 3, 1)) for level in levels), Tensor(fixture["rois"]))
    expected = fixture[f"found_{bins}"]
    weights = fixture["weights"] if bins == 7 else np.ones_like(expected)
    weights = np.ascontiguousarray(weights.transpose(0, 2, 3, 1))
    work = ms.value_and_grad(Pool(weights), (0, 1, 2, 3), has_aux=True)
    (_, found), gradients = work(*inputs)
    np.testing.assert_allclose(found.asnumpy().transpose(0, 3, 1, 2), expected, atol=2e-5)
    if bins == 7:
        of_levels = [gradient.asnumpy().transpose(0, 3, 1, 2).ravel() for gradient in gradients]
        np.testing.assert_allclose(np.concatenate(of_levels), fixture["gradients"], atol=2e-5)
    for number in range(2):
        own = fixture["rois"][:, 0] == number
        regions = torch.from_numpy(fixture["rois"][own, 1:])
        reference = detection.pool(list(map(torch.from_numpy, levels)), number, regions, bins)
        np.testing.assert_allclose(reference, expected[own], atol=2e-5)


@of("boxes_and_masks_test")
def test_objects_of_mask_rcnn(fixture):
    about = geometry(fixture, tuple(fixture["ori_shape"]))
    network, found = mask_rcnn.find_objects(
        fixture["rois"][:, 1:], fixture["logits"], fixture["deltas"], about, PostProcessing()
    )
    np.testing.assert_array_equal(found.labels, fixture["labels"])
    np.testing.assert_allclose(found.scores, fixture["scores"], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, fixture["boxes"], atol=1e-4)
    np.testing.assert_allclose(network[:10], fixture["mask_boxes"], atol=2e-4)
    drawn = sigmoid(fixture["mask_logits"][np.arange(10), fixture["labels"][:10]])
    places = fixture["mask_boxes"] / fixture["scale_factor"]
    size = about.original_height, about.original_width
    np.testing.assert_array_equal(paste(drawn, places, *size), fixture["masks"])
    for mask, place, expected in zip(drawn, places, fixture["masks"], strict=True):
        reference = detection.paste(torch.from_numpy(mask), torch.from_numpy(place), *size)
        np.testing.assert_array_equal(reference, expected)
