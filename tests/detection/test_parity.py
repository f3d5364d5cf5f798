"""The detectors against the PyTorch reference: maps, heads, regions and whole predictions."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from parity import assert_same_up_to_rounding, copy_weights, name_in_torch, photographs

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


@pytest.mark.slow
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


def decided(detector, reference):
    """Classifiers of random weights that are sure of some objects, but not of all or in ties."""
    changes = {"retina_cls": (8, -11), "fc_cls": (6, 0)}
    for parameter in detector.get_parameters():
        *_, layer, kind = parameter.name.split(".")
        if layer in changes:
            factor, shift = changes[layer]
            values = reference.get_parameter(parameter.name)
            values.data = values.data * factor if kind == "weight" else values.data + shift
            parameter.set_data(Tensor(values.detach().numpy()))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_whole_predictions(name):
    """Two pictures of different sizes in one batch; the reference sees one after the other."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    detector, reference = pair(name)
    decided(detector, reference)
    images = photographs(96, 128, batch=2)
    geometries = [geometry(90, 125, 1.7), geometry(96, 110, 0.6)]
    images[0, :, 90:], images[0, :, :, 125:], images[1, :, :, 110:] = 0, 0, 0
    found = detector.predict(Tensor(images), geometries)
    for image, about, ours in zip(images, geometries, found, strict=True):
        with torch.no_grad():
            expected = reference.detect(
                torch.from_numpy(image[None]),
                (about.height, about.width),
                torch.from_numpy(about.scale_factor),
                (about.original_height, about.original_width),
            )
        assert 10 < len(ours) <= 100
        expected = {key: value.numpy() for key, value in expected.items()}
        # As sets: where two scores are as close as their rounding, either may come first.
        distances = abs(ours.boxes[:, None] - expected["boxes"]).max(2)
        distances += 1e9 * (ours.labels[:, None] != expected["labels"])
        partner = distances.argmin(1)
        assert sorted(partner) == list(range(len(expected["boxes"])))
        assert distances.min(1).max() < 1e-3
        # Logits of weights that are multiplied have that much more of rounding.
        np.testing.assert_allclose(ours.scores, expected["scores"][partner], atol=5e-5)
        if name.startswith("maskrcnn"):
            size = about.original_height, about.original_width
            assert ours.masks.shape == (len(ours), *size) and ours.masks.any()
            # Where a probability is 0.5 to its last digits.
            assert (ours.masks != expected["masks"][partner]).mean() < 1e-4
        else:
            assert ours.masks is None


def test_proposals():
    """Equal but for those that rounding exchanges: scores of neighbors differ by as little."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    detector, reference = pair("maskrcnn_svt_tiny")
    images = photographs(96, 128)
    _, logits, deltas = detector(Tensor(images))
    outputs = ([x.asnumpy() for x in values] for values in (logits, deltas))
    (found,) = detector.propose(*outputs, (96, 128), [(90, 125)])
    with torch.no_grad():
        expected = reference.propose(*reference(torch.from_numpy(images)), (90, 125)).numpy()
    assert len(found) == len(expected) > 300
    nearest = abs(found[:, None] - expected[None]).max(2).min(1)
    assert (nearest < 1e-3).mean() > 0.99


@pytest.mark.slow
def test_in_graph_mode():
    """All three graphs give what is computed step by step."""
    detector, reference = pair("maskrcnn_svt_tiny")
    decided(detector, reference)
    images, geometries = Tensor(photographs(64, 96)), [geometry(64, 90)]
    (compiled,) = detector.predict(images, geometries)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    (expected,) = detector.predict(images, geometries)
    assert len(expected) > 10
    np.testing.assert_array_equal(compiled.labels, expected.labels)
    np.testing.assert_allclose(compiled.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(compiled.masks, expected.masks)


@pytest.mark.slow
def test_a_picture_without_objects():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    images = Tensor(np.zeros((1, 3, 64, 64), np.float32))
    for name in TINY:
        detector = create_detector(name, 30)
        (found,) = detector.predict(images, [geometry(64, 60)])
        assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
        assert found.masks is None or found.masks.shape == (0, 65, 60)


def test_geometries_are_of_all_images():
    images = Tensor(np.zeros((2, 3, 64, 64), np.float32))
    with pytest.raises(ValueError, match="2 images have 1 geometries"):
        create_detector(TINY[0]).predict(images, [geometry(64, 64)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_gradient_of_every_parameter(name):
    """Of the network's outputs at fixed regions, in float64 in torch."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    detector, reference = pair(name, num_classes=5)
    images = photographs(64, 96)
    outputs = DetectorOutputs(detector)
    weights = [
        np.random.default_rng(i).standard_normal(x.shape).astype(np.float32)
        for i, x in enumerate(outputs(Tensor(images)))
    ]

    class WeightedSum(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.outputs = outputs
            self.weights = [Tensor(array) for array in weights]

        def construct(self, images):
            total = 0.0
            for i, output in enumerate(self.outputs(images)):
                total = total + (output * self.weights[i]).mean()
            return total

    parameters = list(detector.trainable_params())
    gradients = ms.grad(WeightedSum(), None, parameters)(Tensor(images))
    exact = reference.double().stages(torch.from_numpy(images).double())
    total = sum(
        (x * torch.from_numpy(w)).mean() for x, w in zip(exact.values(), weights, strict=True)
    )
    total.backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = reference.get_parameter(name_in_torch(parameter.name)).grad.numpy()
        error = np.linalg.norm(gradient.asnumpy() - expected)
        # A ReLU that rounding opens or shuts changes gradients by 1e-3, in torch too.
        assert error <= 2e-3 * np.linalg.norm(expected), parameter.name
