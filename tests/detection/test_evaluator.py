"""The evaluation loop with a detector that reads the truth off the pictures, and its loader."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mindtwins.data.loader import EvaluationLoader, LoaderOptions
from mindtwins.detection import transforms
from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.detections import Detections, Geometry
from mindtwins.detection.evaluator import DetectionEvaluator
from mindtwins.detection.loader import DetectionBatch, build_detection_loader
from mindtwins.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = transforms.TestTransform(MEAN, STD, scale=(120, 80))


@pytest.fixture
def data(coco_folder: Path) -> CocoDataset:
    return CocoDataset(coco_folder / "images", coco_folder / "annotations.json", masks=True)


def loader(
    data: CocoDataset, batch_size: int = 1, **options: Any
) -> EvaluationLoader[CocoDataset, DetectionBatch]:
    return build_detection_loader(
        data, TRANSFORM, batch_size=batch_size, options=LoaderOptions(**options)
    )


class Knowing:
    """Finds all objects of the pictures, which it knows by their sizes and first pixels."""

    def __init__(self, data: CocoDataset) -> None:
        self.train = True
        self.known = {}
        for index in range(len(data)):
            image, geometry = TRANSFORM(data.read_image(index))
            self.known[image.tobytes()] = data.objects(index), geometry

    def set_train(self, mode: bool = True) -> None:
        self.train = mode

    def predict(self, images: Tensor, geometries: Sequence[Geometry]) -> list[Detections]:
        assert not self.train
        found = []
        for image, geometry in zip(images.asnumpy(), geometries, strict=True):
            if not image.any():  # a row without a picture
                found.append(Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1, int)))
                continue
            objects, expected = self.known[image.tobytes()]
            assert (geometry.height, geometry.width) == (expected.height, expected.width)
            np.testing.assert_array_equal(geometry.scale_factor, expected.scale_factor)
            scores = np.ones(len(objects), np.float32)
            masks = None if objects.masks is None else objects.masks.astype(bool)
            found.append(Detections(objects.boxes, scores, objects.labels, masks))
        return found


def test_batches_are_of_one_size(data: CocoDataset) -> None:
    batches = list(loader(data, batch_size=2))
    assert sorted(index for batch in batches for index in batch.index if index >= 0) == [*range(5)]
    assert any(len(batch.index) == 2 for batch in batches)
    for batch in batches:
        assert batch.images.shape[1:] in {(3, 96, 128), (3, 128, 64), (3, 64, 128), (3, 128, 96)}
        for row, index in enumerate(batch.index):
            assert batch.valid[row] == (index >= 0)
            if index >= 0:
                image, geometry = TRANSFORM(data.read_image(index))
                np.testing.assert_array_equal(batch.images[row], image)
                assert batch.geometries[row].original_width == data.size(index)[0]
                assert batch.geometries[row].height == geometry.height


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_the_pictures(data: CocoDataset, world: int) -> None:
    parts = [loader(data, rank=rank, world=world) for rank in range(world)]
    seen = [int(index) for part in parts for batch in part for index in batch.index]
    assert sorted(seen) == [*range(5)]
    assert len({len(part) for part in parts}) <= 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_all_is_found(data: CocoDataset, batch_size: int) -> None:
    evaluator = DetectionEvaluator(Knowing(data), loader(data, batch_size=batch_size), masks=True)
    for _ in range(2):
        metrics = evaluator.evaluate()
        assert metrics.images == 5
        assert metrics.kinds["box"].by_name()["AP"] == pytest.approx(100)
        assert metrics.kinds["mask"].by_name()["AP"] == pytest.approx(100)
    assert evaluator.images_per_second is not None and evaluator.images_per_second > 0
    assert evaluator.results is not None
    listed = evaluator.results.listed("mask")
    assert [(one["image_id"], one["category_id"]) for one in listed] == [
        (10, 3),
        (10, 7),
        (11, 1),
        (14, 3),
    ]


def test_ranks_together(data: CocoDataset) -> None:
    """Each rank has the numbers of all."""
    sent: list[bytes] = []
    for rank in range(2):
        DetectionEvaluator(
            Knowing(data),
            loader(data, rank=rank, world=2),
            exchange=lambda label, own: [sent.append(own) or own],
        ).evaluate()
    together = DetectionEvaluator(
        Knowing(data), loader(data, rank=1, world=2), exchange=lambda label, own: sent
    ).evaluate()
    assert len(sent) == 2 and together.images == 5
    assert together.kinds["box"].by_name()["AP"] == pytest.approx(100)
    assert "mask" not in together.kinds


def test_unreadable_pictures(data: CocoDataset, caplog: pytest.LogCaptureFixture) -> None:
    detector = Knowing(data)
    Path(data.paths[1]).write_bytes(b"")
    Image.new("RGB", (9, 9)).save(data.paths[4])
    with pytest.raises(UserError, match=r"cannot read image .*: repair it, or pass --skip"):
        DetectionEvaluator(detector, loader(data)).evaluate()
    evaluator = DetectionEvaluator(detector, loader(data, batch_size=2, skip_bad_images=True))
    with caplog.at_level(logging.WARNING):
        metrics = evaluator.evaluate()
    assert (metrics.images, evaluator.skipped) == (3, 2)
    assert "it is 9 x 9 pixels, but 64 x 30 in" in caplog.text
    assert metrics.kinds["box"].by_name()["AP"] == pytest.approx(100)
