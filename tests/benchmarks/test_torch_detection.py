"""What detectors are compared with: the loss of MMDetection, the reference's operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import mindspore_side, torch_detection
from benchmarks.inputs import OBJECT_CLASSES, Work, batch_of, boxes_of
from mindtwins.detection.mask_rcnn import MaskRCNN
from mindtwins.detection.regions import RegionChoice
from mindtwins.reference import detection
from mindtwins.training.step import MicroBatch

FIXTURES = Path(__file__).parents[1] / "detection" / "fixtures"
BOXES = torch.from_numpy(boxes_of(60)[0])


def test_the_loss_is_mmdetection_s():
    """What is undecided there, and never in a benchmark, is told to be surely nothing."""
    with np.load(FIXTURES / "retinanet_loss.npz") as data:
        arrays = {key: torch.from_numpy(data[key]) for key in data.files}
    counts = [9 * height * width for height, width in arrays["sizes"].tolist()]

    def levels(name: str, each: int) -> list[torch.Tensor]:
        maps = arrays[name].float().split([2 * each * count for count in counts])
        return [x.reshape(2, 9 * each, -1).mT.reshape(2, -1, each) for x in maps]

    logits = levels("logits", 5)
    for level, decided in zip(logits, arrays["label_weights"].split(counts, 1), strict=True):
        level[decided == 0] = -100
    outputs = list(zip(logits, levels("deltas", 4), strict=True))
    found = torch_detection.retinanet_loss(outputs, arrays["labels"], arrays["box_targets"])
    expected = (arrays["loss_cls"] + arrays["loss_bbox"]).sum()
    torch.testing.assert_close(found, expected)


def test_a_mask_is_pasted_as_by_the_reference():
    masks = torch.rand(60, 28, 28, generator=torch.Generator().manual_seed(0))
    for mask, box in zip(masks, BOXES / 4 - 20, strict=True):
        expected = detection.paste(mask, box, 90, 70)
        assert torch.equal(torch_detection.operators().paste(mask, box, 90, 70), expected)


def test_torchvision_s_operators_are_the_reference_s():
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    levels = [torch.randn(1, 3, side, side) for side in (128, 64, 32, 16)]
    scores = torch.from_numpy(boxes_of(60)[1])
    ours, theirs = torch_detection.operators(), detection.Operators()
    torch.testing.assert_close(ours.pool(levels, 0, BOXES, 7), theirs.pool(levels, 0, BOXES, 7))
    assert torch.equal(ours.nms(BOXES, scores, 0.5), theirs.nms(BOXES, scores, 0.5))


@pytest.mark.slow
def test_regions_are_chosen_as_by_mindtwins():
    """Each side's own proposals give the loss of the other's."""
    name = "maskrcnn_svt_tiny"
    arrays = batch_of(Work("CPU", "fp32", name, "training", 64, 2))
    ours = mindspore_side._filled_detector(name).set_train()
    assert isinstance(ours, MaskRCNN)
    completed = RegionChoice(ours)(MicroBatch(arrays[0], arrays[1:])).targets
    assert all((labels >= 0).sum() > 50 for labels in completed[3])
    model = torch_detection.create(name)
    images, *targets = map(torch.from_numpy, arrays)
    with torch.no_grad():
        outputs = model(images)
        loss_of = torch_detection.loss_of(model)
        found = loss_of(outputs, *targets)
        expected = loss_of(outputs, *map(torch.from_numpy, completed))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [64, 73, 512])
def test_targets_are_of_all_anchors(size: int):
    images, labels, deltas = batch_of(
        Work("CPU", "fp32", "retinanet_svt_tiny", "training", size, 2)
    )
    model = detection.create_detection_reference("retinanet_svt_tiny")
    if size < 512:
        count = sum(logits.shape[1] for logits, _ in model(torch.from_numpy(images)))
    else:
        count = 9 * (64**2 + 32**2 + 16**2 + 8**2 + 4**2)
    assert labels.shape == (2, count) and deltas.shape == (2, count, 4)
    assert 0 < (labels < OBJECT_CLASSES).mean() < 0.01
