"""The detectors against the PyTorch reference: maps, heads, regions and whole predictions."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from parity import assert_same_up_to_rounding, copy_weights, photographs

from mindtwins.detection.detections import Geometry
from mindtwins.detection.outputs import DetectorOutputs
from mindtwins.detection.variants import create_detector, list_detectors
from mindtwins.reference.detection import create_detection_reference
from mindtwins.reference.weights import amplify, randomize

TINY = ("retinanet_svt_tiny", "maskrcnn_svt_tiny")
LEVELS = range(1, 6)


def pair(name, weights=randomize, **options):
    """A detector and the reference with the same random weights."""
    reference = weights(create_detection_reference(name, **options))
    detector = create_detector(name, **options)
    copy_weights(reference, detector)
    return detector, reference


def stages(name):
    maps = [*(f"stage{i}" for i in range(1, 5)), *(f"neck{i}" for i in LEVELS)]
    first = "class" if name.startswith("retinanet") else "object"
    maps += [*(f"{first}{i}" for i in LEVELS), *(f"box{i}" for i in LEVELS)]
    regions = ["regions", "classes", "boxes", "masks"]
    return maps if name.startswith("retinanet") else maps + regions


@pytest.mark.parametrize("weights", [randomize, lambda model: amplify(randomize(model))])
@pytest.mark.parametrize("name", TINY)
def test_every_stage(name, weights):
    ms.set_context(mode=ms.PYNATIVE_MODE)  # without a graph to build for each
    detector, reference = pair(name, weights)
    rows = assert_same_up_to_rounding(
        DetectorOutputs(detector), reference, photographs(192, 256, batch=2)
    )
    assert [row.stage for row in rows] == stages(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name.endswith("_small") else pytest.mark.endurance
        )
        for name in list_detectors()
    ],
)
def test_every_detector(name):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    detector, reference = pair(name)
    rows = assert_same_up_to_rounding(DetectorOutputs(detector), reference, photographs(160, 192))
    assert [row.stage for row in rows] == stages(name)


def geometry(height, width, scale=1.0):
    """Of a picture that was resized by about `scale`, differently along the axes."""
    original = round(height / scale) + 1, round(width / scale)
    factors = np.array([width / original[1], height / original[0]] * 2, np.float32)
    return Geometry(height, width, factors, *original)


def likelier(detector, reference):
    """Shifts biases until random weights find some objects, and no logits saturate."""
    changes = {"retina_cls.bias": -6.0, "fc_cls.bias": 0.0}
    for parameter in detector.get_parameters():
        for name, shift in changes.items():
            if parameter.name.endswith(name):
                parameter.set_data(parameter + shift)
                reference.get_parameter(parameter.name).data += shift


@pytest.mark.parametrize("name", TINY)
def test_whole_predictions(name):
    """Two pictures of different sizes in one batch; the reference sees one after the other."""
    detector, reference = pair(name)
    likelier(detector, reference)
    images = photographs(128, 160, batch=2)
    geometries = [geometry(120, 155, 1.7), geometry(128, 140, 0.6)]
    images[0, :, 120:], images[0, :, :, 155:], images[1, :, :, 140:] = 0, 0, 0
    found = detector.predict(Tensor(images), geometries)
    for image, about, ours in zip(images, geometries, found, strict=True):
        with torch.no_grad():
            expected = reference.detect(
                torch.from_numpy(image[None]),
                (about.height, about.width),
                torch.from_numpy(about.scale_factor),
                (about.original_height, about.original_width),
            )
        print(len(ours), ours.scores[:5], np.unique(ours.labels).size)
        print(expected["scores"][:5], -np.diff(expected["scores"]).min() if len(ours) else None)
        assert 10 < len(ours) <= 100
        assert len(ours) == len(expected["boxes"])
        np.testing.assert_allclose(ours.scores, expected["scores"], atol=1e-5)
        np.testing.assert_array_equal(ours.labels, expected["labels"])
        np.testing.assert_allclose(ours.boxes, expected["boxes"], atol=1e-3)
