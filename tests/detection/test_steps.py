"""Training steps of detectors against PyTorch's: losses, gradients and weights.

And the regions that a Mask R-CNN learns from.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn
from parity import copy_weights, name_in_torch, photographs

from mindtwins.detection.assignment import (
    PROPOSAL_RULE,
    PROPOSAL_SAMPLING,
    RETINANET,
    AnchorTask,
    Sampling,
)
from mindtwins.detection.loss import MaskRCNNLoss, RetinaNetLoss, mask_loss, region_losses
from mindtwins.detection.mask_rcnn import MaskRCNN
from mindtwins.detection.regions import TRAINING_CANDIDATES, RegionChoice, stack_regions
from mindtwins.detection.retinanet import RetinaNet
from mindtwins.detection.variants import create_detector
from mindtwins.reference.detection import MaskRCNNReference, create_detection_reference
from mindtwins.reference.weights import randomize
from mindtwins.training.step import MicroBatch, TrainStep, build_train_step

CLASSES = 5
SIZE = (32, 64)
BOXES = np.float32([[2, 3, 20, 25], [15, 5, 60, 30], [30, 10, 41, 21]])
LABELS = np.int32([2, 0, 4])


def test_regions_and_losses_of_mmdetection() -> None:
    """With its draws; a picture has objects and the other none, and rows are filled up."""
    stored = np.load(Path(__file__).parent / "fixtures" / "second_stage_loss.npz")
    theirs = {
        key: value.astype(np.float32) if value.dtype == np.float16 else value
        for key, value in stored.items()
    }
    draws = [theirs[f"permutation_{number}"] for number in range(3)]
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    rois, labels, deltas, masks = stack_regions(
        [theirs["proposals_0"], theirs["proposals_1"]],
        [theirs["gt_boxes"], nothing[0]],
        [theirs["gt_labels"], nothing[1]],
        [theirs["gt_masks"], np.zeros((1, 64, 64), np.uint8)],
        CLASSES,
        Sampling(48, 0.25),
        [lambda _: draws.pop(0)] * 2,
    )
    assert rois.shape == (2, 48, 5) and not draws
    np.testing.assert_array_equal(rois.reshape(-1, 5), theirs["rois"])
    np.testing.assert_array_equal(labels.ravel(), theirs["labels"])
    np.testing.assert_array_equal(masks[0], theirs["mask_targets"])
    assert masks.shape == (2, 12, 28, 28) and not masks[1].any()
    # More rows than regions.
    more = stack_regions(
        [rois[0, :, 1:]], [nothing[0]], [nothing[1]], masks[1:], CLASSES, Sampling(60, 0.25), [len]
    )
    assert (more[1][0] == CLASSES).sum() == 48 and (more[1][0] == -1).sum() == 12
    assert (more[0][0, :48, 0] == 0).all() and (more[0][0, 48:, 0] == -1).all()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    logits, moves = Tensor(theirs["logits"]), Tensor(theirs["deltas"])
    found = region_losses(
        logits, moves, Tensor(labels.ravel()), Tensor(deltas.reshape(-1, 4)), CLASSES
    )
    drawn = np.zeros((24, 28, 28, CLASSES), np.float32)
    drawn[:12] = theirs["mask_logits"].transpose(0, 2, 3, 1)
    own = np.where(labels[:, :12] < CLASSES, labels[:, :12], -1).ravel()
    pixels = mask_loss(Tensor(drawn), Tensor(own), Tensor(masks.reshape(24, 28, 28)))
    expected = [theirs[f"loss_{name}"].sum() for name in ("cls", "bbox", "mask")]
    np.testing.assert_allclose([float(loss) for loss in (*found, pixels)], expected, rtol=1e-5)


def pair() -> tuple[MaskRCNN, MaskRCNNReference]:
    reference = randomize(create_detection_reference("maskrcnn_svt_tiny", CLASSES))
    detector = create_detector("maskrcnn_svt_tiny", CLASSES)
    copy_weights(reference, detector)
    assert isinstance(detector, MaskRCNN) and isinstance(reference, MaskRCNNReference)
    return detector, reference


ANCHORS = {
    "maskrcnn_svt_tiny": AnchorTask(
        MaskRCNN.strides, MaskRCNN.scales, 1, PROPOSAL_RULE, PROPOSAL_SAMPLING
    ),
    "retinanet_svt_tiny": AnchorTask(RetinaNet.strides, RetinaNet.scales, CLASSES, RETINANET),
}


def two_pictures(seed: int = 0, name: str = "maskrcnn_svt_tiny") -> MicroBatch:
    """One with three objects, and a smaller one without any, as the loader gives them."""
    anchors = ANCHORS[name]
    rng = np.random.default_rng(seed)
    images = photographs(*SIZE, batch=2)
    images[1, :, :, 32:] = 0
    sizes = np.int32([[30, 60], [32, 32]])
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    said = [
        anchors.targets(*objects, padded, SIZE, rng)
        for objects, padded in (((BOXES, LABELS), SIZE), (none, (32, 32)))
    ]
    of_anchors = tuple(np.stack(kind) for kind in zip(*said, strict=True))
    if name.startswith("retinanet"):
        return MicroBatch(images, of_anchors)
    boxes, labels = np.zeros((2, 3, 4), np.float32), np.full((2, 3), -1, np.int32)
    boxes[0], labels[0] = BOXES, LABELS
    masks = np.zeros((2, 3, *SIZE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks[0], BOXES.astype(int), strict=True):
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.7
    targets = (
        *of_anchors,
        *(boxes, labels, sizes, masks, np.int64([5, 2**62 + seed])),
    )
    return MicroBatch(images, targets)


def training_step(model: MaskRCNN, **options: object) -> TrainStep:
    model.set_train()
    return build_train_step(
        model, MaskRCNNLoss(model), clip_grad=0, complete=RegionChoice(model), **options
    )


def gradients(step: TrainStep) -> dict[str, np.ndarray]:
    """Of the first step, which its first moments are a tenth of."""
    optimizer = step.optimizer
    return {
        parameter.name: moment.asnumpy() / np.float32(0.1)
        for parameter, moment in zip(optimizer.parameters, optimizer.moments, strict=True)
    }


def mask_rcnn_losses(reference: MaskRCNNReference, batch: MicroBatch) -> dict[str, torch.Tensor]:
    """The reference's in its precision, at the regions of a completed batch."""
    precision = next(reference.parameters()).dtype
    arrays = map(torch.from_numpy, (batch.images, *batch.targets))
    images, *anchors, rois, labels, deltas, masks = (
        array.to(precision) if array.is_floating_point() else array for array in arrays
    )
    regions = [own >= 0 for own in labels]
    positive = [((own >= 0) & (own < CLASSES)).sum() for own in labels]
    return reference.losses(
        reference(images),
        *anchors,
        [own[rows, 1:] for own, rows in zip(rois, regions, strict=True)],
        [own[rows].long() for own, rows in zip(labels, regions, strict=True)],
        [own[rows] for own, rows in zip(deltas, regions, strict=True)],
        [own[:count] for own, count in zip(masks, positive, strict=True)],
    )


@pytest.mark.slow
def test_a_step_equals_pytorchs() -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model, reference = pair()
    batch = two_pictures()
    step = training_step(model)
    completed = RegionChoice(model)(batch)
    rois, labels = completed.targets[2:4]
    regions = [(own >= 0).sum() for own in labels]
    positive = [((own >= 0) & (own < CLASSES)).sum() for own in labels]
    assert all(100 < count < 512 for count in regions)  # all that there are
    assert positive[0] >= 3 and positive[1] == 0  # the objects are among the regions
    np.testing.assert_array_equal(rois[0, :3, 1:], BOXES)

    with torch.no_grad():
        outputs = reference(torch.from_numpy(batch.images))
        for number, (count, objects) in enumerate(zip(regions, (3, 0), strict=True)):
            size = batch.targets[4][number].tolist()
            proposed = reference.propose(*outputs, size, number, TRAINING_CANDIDATES)
            assert count == len(proposed) + objects
            chosen = np.sort(rois[number, :count, 1:], axis=0)
            objects = np.concatenate([batch.targets[2][number][:objects], proposed])
            # Sorted by each coordinate, for a tie of scores may fall either way.
            assert (np.abs(chosen - np.sort(objects, axis=0)) < 1e-3).mean() > 0.99

    result = step([batch], 1e-6)
    losses = mask_rcnn_losses(reference, completed)
    assert all(loss.item() > 0 for loss in losses.values())
    total = sum(losses.values())
    assert result.loss == pytest.approx(total.item(), rel=1e-5)
    exact = copy.deepcopy(reference).double()
    total.backward()
    sum(mask_rcnn_losses(exact, completed).values()).backward()
    for name, found in gradients(step).items():
        # Of PyTorch's two precisions one: where a ReLU's input is 0 but for rounding, its float32,
        # whose rounding depends on its threads, may let a pixel through that float64 does not.
        expected = [theirs.get_parameter(name_in_torch(name)).grad for theirs in (reference, exact)]
        errors = [np.abs(found - grad.numpy()).max() for grad in expected]
        assert min(errors) <= 1e-4 * expected[1].abs().max().item() > 0, name


DECAY, LR = 0.05, 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("retinanet_svt_tiny", 20), ("maskrcnn_svt_tiny", 5)])
def test_steps_equal_pytorchs(name: str, steps: int) -> None:
    """In graph mode, at the regions that were chosen here, with AdamW as in the 3x recipes.

    Fewer of Mask R-CNN: where the distance of a delta, or a ReLU's input, comes so close to 0 that
    rounding decides on its sign, gradients jump, and from there on two trainings part, as PyTorch's
    float32 does from its float64.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    reference = randomize(create_detection_reference(name, CLASSES))
    model = create_detector(name, CLASSES).set_train()
    copy_weights(reference, model)
    start = weights_of(model)
    completed: list[MicroBatch] = []
    choose = RegionChoice(model) if isinstance(model, MaskRCNN) else None

    def complete(batch: MicroBatch) -> MicroBatch:
        completed.append(choose(batch) if choose else batch)
        return completed[-1]

    loss = MaskRCNNLoss(model) if isinstance(model, MaskRCNN) else RetinaNetLoss(CLASSES)
    options = {"weight_decay": DECAY, "no_decay": ("norm", "pos_block"), "clip_grad": 0}
    step = build_train_step(model, loss, complete=complete, **options)
    groups: dict[float, list] = {DECAY: [], 0.0: []}
    for key, parameter in reference.named_parameters():
        exempt = re.search(r"(^|\.)(norm\d?|norm_list|pos_block)\.", key)
        groups[0.0 if exempt else DECAY].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": own, "weight_decay": decay} for decay, own in groups.items()], lr=LR
    )
    for number in range(steps):
        result = step([two_pictures(number, name)], LR)
        if isinstance(reference, MaskRCNNReference):
            losses = mask_rcnn_losses(reference, completed[-1])
        else:
            batch = completed[-1]
            images, labels, deltas = map(torch.from_numpy, (batch.images, *batch.targets))
            losses = reference.losses(images, labels.long(), deltas)
        total = sum(losses.values())
        assert result.loss == pytest.approx(total.item(), rel=1e-5)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    trained = create_detector(name, CLASSES)
    copy_weights(reference, trained)
    expected = weights_of(trained)
    error, moved = (np.linalg.norm(expected - one) for one in (weights_of(model), start))
    assert error < 1e-4 * np.linalg.norm(expected)
    assert moved > 20 * error  # the steps did something


def weights_of(model: nn.Cell) -> np.ndarray:
    return np.concatenate([p.asnumpy().ravel() for p in model.get_parameters()])


@pytest.mark.endurance
def test_accumulation_averages_what_the_passes_say() -> None:
    """Each with regions of its own pictures, whatever the order; the weights are those before."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    batches = [two_pictures(seed) for seed in range(2)]
    alone = []
    for batch in batches:
        step = training_step(pair()[0])
        alone.append((step([batch], 1e-3).loss, gradients(step)))
    both = training_step(pair()[0], accumulation=2)
    loss = both(batches[::-1], 1e-3).loss
    assert loss == pytest.approx(np.mean([loss for loss, _ in alone]), rel=1e-6)
    for name, found in gradients(both).items():
        expected = (alone[0][1][name] + alone[1][1][name]) / 2
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_regions_are_drawn_by_the_pictures_seeds() -> None:
    """Few are drawn of many, a quarter of them of objects, each time the same."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model, _ = pair()
    choose, batch = RegionChoice(model, Sampling(40, 0.25)), two_pictures()
    first, again = choose(batch).targets, choose(batch).targets
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    rois, labels, _, masks = first[2:]
    assert rois.shape == (2, 40, 5) and masks.shape == (2, 10, 28, 28)
    assert [(own < CLASSES).sum() for own in labels] == [10, 0] and (labels >= 0).all()
    assert (rois[:, :, 0] == [[0], [1]]).all()
    # The proposals are those of the step: with its stochastic depth.
    dropped = np.zeros((len(model.drop_path_rates), 2), np.float32)
    without = choose(replace(batch, drop_path_mask=dropped)).targets[2]
    assert (without[1] != rois[1]).any()
    *rest, seeds = batch.targets
    seeds[1] += 1
    other = choose(MicroBatch(batch.images, (*rest, seeds))).targets[2]
    np.testing.assert_array_equal(other[0], rois[0])
    assert (other[1] != rois[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_diverged_model_proposes_nothing(value: float) -> None:
    """And the loss is not finite, even where all anchors are rightly sure that nothing is there."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model, _ = pair()
    batch = two_pictures()
    model.rpn_head.rpn_cls.bias.set_data(Tensor(np.full(3, value, np.float32)))
    completed = RegionChoice(model)(batch)
    assert [(own >= 0).sum() for own in completed.targets[3]] == [3, 0]  # the objects themselves
    assert not np.isfinite(training_step(model)([batch], 1e-3).loss)


@pytest.mark.slow
def test_pictures_without_any_object() -> None:
    """The step learns that nothing is there, and nothing of boxes and masks."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model, _ = pair()
    batch = two_pictures()
    labels, deltas, boxes, classes, sizes, masks, seeds = batch.targets
    labels, boxes, classes = np.where(labels == 0, 1, labels), boxes * 0, classes * 0 - 1
    batch = MicroBatch(batch.images, (labels, deltas * 0, boxes, classes, sizes, masks * 0, seeds))
    step = training_step(model)
    result = step([batch], 1e-6)
    assert result.finite and result.loss > 0
    for name, gradient in gradients(step).items():
        learns_of_objects = "mask_head" in name or "fc_reg" in name or "rpn_reg" in name
        assert gradient.any() != learns_of_objects, name
