"""Detector.predict around the network, whose outputs are given."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindtwins.detection.detections import Geometry
from mindtwins.detection.detector import Detector
from mindtwins.detection.mask_rcnn import RegionPooling
from mindtwins.detection.retinanet import RetinaNet
from mindtwins.detection.variants import create_detector
from mindtwins.errors import UserError

IMAGES = Tensor(np.zeros((1, 3, 32, 32), np.float32))
GEOMETRY = Geometry(32, 32, np.ones(4, np.float32), 32, 32)


@pytest.fixture
def detector() -> Detector:
    return create_detector("retinanet_svt_tiny", 2)


def outputs(detector: Detector) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits and deltas of the levels of one picture, without an object."""
    counts = [len(level) for level in detector.anchors(32, 32)]
    logits = [np.full((1, count, 2), -9, np.float32) for count in counts]
    return logits, [np.zeros((1, count, 4), np.float32) for count in counts]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, kind: int, value: float
) -> None:
    given = outputs(detector)
    monkeypatch.setattr(
        RetinaNet, "__call__", lambda *_: tuple([Tensor(a) for a in part] for part in given)
    )
    (found,) = detector.predict(IMAGES, [GEOMETRY])
    assert len(found) == 0
    given[kind][2][0, 0, 1] = value
    with pytest.raises(UserError, match="outputs are not all finite numbers"):
        detector.predict(IMAGES, [GEOMETRY])


@pytest.mark.parametrize("name", ["retinanet_svt_tiny", "maskrcnn_svt_tiny"])
def test_a_broken_picture_is_refused(name: str) -> None:
    """No ReLU makes 0 of NaN, from which plausible objects would follow."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    pixels = np.zeros((1, 3, 32, 32), np.float32)
    pixels[0, 0, 5, 5] = np.nan
    with pytest.raises(UserError, match="outputs are not all finite numbers"):
        create_detector(name, 2).predict(Tensor(pixels), [GEOMETRY])


def test_prediction_evaluates(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the detector does otherwise, and after an error too."""
    logits, deltas = outputs(detector)
    modes = []

    def compute(self: Detector, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        modes.append([cell.training for _, cell in self.cells_and_names()])
        return [Tensor(a) for a in logits], [Tensor(a) for a in deltas]

    monkeypatch.setattr(RetinaNet, "__call__", compute)
    detector.predict(IMAGES, [GEOMETRY])
    detector.set_train()
    detector.predict(IMAGES, [GEOMETRY])
    assert all(cell.training for _, cell in detector.cells_and_names())
    logits[0][:] = np.nan
    with pytest.raises(UserError):
        detector.predict(IMAGES, [GEOMETRY])
    assert all(cell.training for _, cell in detector.cells_and_names())
    assert not np.any(modes)


def test_regions_of_another_picture_take_no_other_graph() -> None:
    """A tuple of the levels did, half a second for each picture."""
    pooling = RegionPooling(2)
    rois = Tensor(np.array([[0, 1, 1, 9, 9]], np.float32))
    for value in range(3):
        levels = [np.full((1, side, side, 3), value, np.float32) for side in (8, 4, 2, 1)]
        features = pooling(rois, *map(Tensor, levels)).asnumpy()
        np.testing.assert_array_equal(features, np.full((1, 2, 2, 3), value))
    assert len(pooling.compile_cache) == 1
