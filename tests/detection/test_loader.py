"""Training batches against their samples, one by one. Evaluation: see test_evaluator.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import annotation, content
from PIL import Image

from mindtwins.data.loader import LoaderOptions, TrainingLoader
from mindtwins.data.randomness import sample_generator
from mindtwins.detection.assignment import PROPOSAL_RULE, RETINANET, AnchorTask, Sampling
from mindtwins.detection.dataset import CocoDataset
from mindtwins.detection.loader import build_detection_training_loader
from mindtwins.detection.transforms import BatchSizes, DetectionTransform
from mindtwins.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = DetectionTransform(MEAN, STD, scale=(120, 80))
# Few are sampled, so that there is something to draw.
ANCHORS = AnchorTask((4, 8, 16, 32, 64), (8.0,), 1, PROPOSAL_RULE, Sampling(20, 0.5))
RETINANET_ANCHORS = AnchorTask(
    (8, 16, 32, 64, 128), tuple(4 * 2 ** (i / 3) for i in range(3)), 3, RETINANET
)


@pytest.fixture
def folder(coco_folder: Path) -> Path:
    """Every picture has an object but the fourth, which has a crowd; one is higher than wide."""
    data = content()
    data["images"][4]["height"] = 32
    data["annotations"] += [
        annotation(20, 12, 7, [3, 3, 20, 30]),
        annotation(21, 12, 1, [3, 3, 50, 30]),
        annotation(22, 12, 1, [30, 3, 20, 39]),
    ]
    (coco_folder / "annotations.json").write_text(json.dumps(data))
    with Image.open(coco_folder / "images" / "4.png") as image:
        image.resize((64, 32)).save(coco_folder / "images" / "4.png")
    return coco_folder


def loader(
    folder: Path,
    masks: bool = True,
    anchors: AnchorTask | None = None,
    batch_size: int = 2,
    seed: int = 0,
    sizes: BatchSizes | None = None,
    **options: Any,
) -> TrainingLoader:
    data = CocoDataset(folder / "images", folder / "annotations.json", masks=masks, training=True)
    return build_detection_training_loader(
        data,
        TRANSFORM,
        anchors or ANCHORS,
        sizes or BatchSizes(),
        batch_size=batch_size,
        seed=seed,
        options=LoaderOptions(**options),
    )


def test_batches_are_padded_samples(folder: Path) -> None:
    batches = list(loader(folder, seed=5).batches(0, 6))
    # 4 wide pictures, and 1 that is filled up to 2.
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 1]
    data = CocoDataset(folder / "images", folder / "annotations.json", masks=True, training=True)
    assert len(data) == 5
    for batch in batches:
        anchor_labels, anchor_deltas, boxes, labels, sizes, masks, seeds = batch.targets
        generators = [sample_generator(5, batch.epoch, int(index)) for index in batch.index]
        samples = [
            TRANSFORM(*data.read(int(index)), rng)
            for index, rng in zip(batch.index, generators, strict=True)
        ]
        assert batch.images.shape[2] == max(sample.picture.shape[1] for sample in samples)
        assert batch.images.shape[3] == max(sample.picture.shape[2] for sample in samples)
        most = max(1, *(len(sample.objects) for sample in samples))
        assert boxes.shape == (2, most, 4) and labels.shape == (2, most)
        assert masks.shape == (2, most, *batch.images.shape[2:])
        for row, sample in enumerate(samples):
            height, width = sample.picture.shape[1:]
            classes, deltas = ANCHORS.targets(
                sample.objects.boxes,
                sample.objects.labels,
                (height, width),
                batch.images.shape[2:],
                generators[row],
            )
            np.testing.assert_array_equal(anchor_labels[row], classes)
            np.testing.assert_array_equal(anchor_deltas[row], deltas)
            assert set(classes) <= {-1, 0, 1}
            assert (classes >= 0).sum() == 20
            assert (0 in classes) == (len(sample.objects) > 0)
            np.testing.assert_array_equal(batch.images[row, :, :height, :width], sample.picture)
            assert batch.images[row].astype(bool).sum() == sample.picture.astype(bool).sum()
            count = len(sample.objects)
            np.testing.assert_array_equal(boxes[row, :count], sample.objects.boxes)
            np.testing.assert_array_equal(labels[row, :count], sample.objects.labels)
            assert (labels[row, count:] == -1).all() and not boxes[row, count:].any()
            assert sizes[row].tolist() == [sample.height, sample.width]
            expected = sample.objects.masks
            assert expected is not None
            np.testing.assert_array_equal(
                masks[row, :count, : sample.height, : sample.width], expected
            )
            assert masks[row].sum() == expected.sum()
            assert seeds[row] == generators[row].integers(2**63)  # the draw after the others
    of_first_epoch = sorted(index for batch in batches[:3] for index in batch.index)
    assert of_first_epoch == [0, 1, 1, 2, 3, 4]
    tall = [set(batch.index) for batch in batches if 1 in batch.index]
    assert tall == [{1}, {1}]


def test_without_masks(folder: Path) -> None:
    """What RetinaNet learns from: the anchors' classes and deltas, of all levels."""
    (batch,) = loader(folder, masks=False, anchors=RETINANET_ANCHORS).batches(0, 1)
    labels, deltas = batch.targets
    height, width = batch.images.shape[2:]
    count = sum(9 * -(-height // stride) * -(-width // stride) for stride in (8, 16, 32, 64, 128))
    assert (labels.shape, deltas.shape) == ((2, count), (2, count, 4))
    assert (labels.dtype, deltas.dtype) == (np.int32, np.float32)
    assert set(np.unique(labels)) <= {-1, 0, 1, 2, 3} and 3 in labels
    has_object = (labels >= 0) & (labels < 3)
    assert has_object.any() and not deltas[~has_object].any()
    np.testing.assert_array_equal(deltas[has_object].any(axis=1), True)


def test_a_batch_depends_on_its_number_alone(folder: Path) -> None:
    later = list(loader(folder, seed=7, num_parallel_workers=1).batches(4, 6))
    for there, here in zip(later, list(loader(folder, seed=7).batches(0, 6))[4:], strict=True):
        np.testing.assert_array_equal(there.images, here.images)
        for one, other in zip(there.targets, here.targets, strict=True):
            np.testing.assert_array_equal(one, other)


def test_ranks_share_a_global_batch(folder: Path) -> None:
    (whole,) = loader(folder, batch_size=4).batches(1, 2)
    seen = []
    for rank in range(2):
        (part,) = loader(folder, rank=rank, world=2).batches(1, 2)
        seen += part.index.tolist()
    assert seen == whole.index.tolist()


def test_unreadable_pictures(folder: Path) -> None:
    (folder / "images" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*2\.png"):
        list(loader(folder).batches(0, 3))
    skipping = loader(folder, skip_bad_images=True)
    batches = list(skipping.batches(0, 3))
    assert skipping.skipped >= 1
    assert 2 not in {int(index) for batch in batches for index in batch.index}


@pytest.mark.parametrize(
    ("steps", "largest", "expected"),
    [
        (0, (96, 128), (96, 128)),
        (4, (800, 1088), (800, 1344)),  # fourths of 1333 and 800, in multiples of 32
        (4, (800, 800), (800, 1024)),
        (4, (1344, 800), (1344, 800)),
        (4, (384, 1216), (416, 1344)),
        (4, (832, 992), (1024, 1024)),  # crops of one group may be wide and high
        (1, (32, 32), (800, 1344)),
    ],
)
def test_few_sizes(steps: int, largest: tuple[int, int], expected: tuple[int, int]) -> None:
    assert BatchSizes(steps=steps)(*largest) == expected


def test_what_is_added_is_not_learned_from(folder: Path) -> None:
    """A batch of a larger size has the same pictures, and the same anchors of them to learn."""
    options: dict[str, Any] = {"masks": False, "anchors": RETINANET_ANCHORS, "seed": 3}
    small = list(loader(folder, **options).batches(0, 3))
    large = list(loader(folder, sizes=BatchSizes((256, 192), 1), **options).batches(0, 3))
    for one, other in zip(small, large, strict=True):
        height, width = one.images.shape[2:]
        assert other.images.shape[2:] == ((192, 256) if height <= width else (256, 192))
        np.testing.assert_array_equal(other.images[:, :, :height, :width], one.images)
        assert not other.images[:, :, height:].any() and not other.images[..., width:].any()
        for value in range(-1, 4):
            counted = [(batch.targets[0] == value).sum() for batch in (one, other)]
            assert counted[0] == counted[1] or value == -1
        assert np.abs(one.targets[1]).sum() == pytest.approx(np.abs(other.targets[1]).sum())
