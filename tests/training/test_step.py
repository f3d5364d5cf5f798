"""The training step against PyTorch's, and its own rules."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops
from parity import copy_weights

from mindtwins.classification.loss import SoftTargetCrossEntropy
from mindtwins.layers import Dense
from mindtwins.models import create_model
from mindtwins.reference import create_reference
from mindtwins.reference.weights import randomize
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.schedule import CosineSchedule
from mindtwins.training.step import MicroBatch, TrainStep, build_train_step, global_norm

CLASSES, BATCH, STEPS, CLIP, DECAY = 10, 8, 20, 5.0, 0.05


def make_step(model: nn.Cell, accumulation: int = 1, scale: LossScale | None = None) -> TrainStep:
    return build_train_step(
        model,
        SoftTargetCrossEntropy(),
        weight_decay=DECAY,
        clip_grad=CLIP,
        accumulation=accumulation,
        loss_scale=scale,
    )


def batches(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(BATCH, 3, 32, 32)).astype(np.float32),
            rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32),
        )
        for _ in range(steps)
    ]


def weights_of(model: nn.Cell) -> np.ndarray:
    return np.concatenate([p.asnumpy().ravel() for p in model.get_parameters()])


def torch_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim <= 1 or name.startswith("pos_block.")
        (plain if is_plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, eps=1e-8)


@pytest.mark.usefixtures("pcpvt_tiny")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("svt_tiny", marks=pytest.mark.slow),
        pytest.param("pcpvt_tiny", marks=pytest.mark.slow),
        # `benchmarks.step_parity` prints these.
        pytest.param("svt_small", marks=pytest.mark.endurance),
        pytest.param("pcpvt_small", marks=pytest.mark.endurance),
    ],
)
def test_twenty_steps_equal_pytorchs(name: str):
    """Forward, backward, clip, AdamW with groups, warmup and cosine."""
    reference = randomize(create_reference(name, num_classes=CLASSES)).train()
    model = create_model(name, num_classes=CLASSES)
    copy_weights(reference, model)
    step, optimizer = make_step(model), torch_optimizer(reference)
    schedule = CosineSchedule(1e-3, 1e-5, 1e-6, 1, 10, steps_per_epoch=3)
    start = weights_of(model)
    clipped = 0
    for number, (images, targets) in enumerate(batches(STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(number)
        logits = reference(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), CLIP).item()
        optimizer.step()
        result = step([MicroBatch(images, targets)], schedule(number))
        assert result.finite
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)
        assert result.norm == pytest.approx(norm, rel=1e-3)
        clipped += norm > CLIP
    trained = create_model(name, num_classes=CLASSES)
    copy_weights(reference, trained)
    expected = weights_of(trained)
    moved = np.linalg.norm(expected - start) / np.linalg.norm(expected)
    error = np.linalg.norm(weights_of(model) - expected) / np.linalg.norm(expected)
    assert error < 1e-4
    assert moved > 100 * error  # the steps did something
    assert 0 < clipped < STEPS  # with clipping and without


class Toy(nn.Cell):
    """A classifier with one residual branch, which compiles at once."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.body = Dense(3 * 32 * 32, 24)
        self.branch = Dense(24, 24)
        self.head = Dense(24, CLASSES)
        for parameter in self.get_parameters():
            values = rng.normal(size=parameter.shape) / parameter.shape[-1] ** 0.5
            parameter.set_data(Tensor(values, ms.float32))

    def construct(self, images, drop_path_mask):
        x = self.body(ops.reshape(images, (images.shape[0], -1)))
        x = x + ops.gelu(self.branch(x)) * ops.transpose(drop_path_mask, (1, 0))
        return self.head(x)


KEEP = np.array([[0, 2, 2, 0, 0, 2, 0, 2]], np.float32)


@pytest.mark.slow
def test_accumulation_equals_one_large_batch():
    """Drop path included: its masks belong to the images."""
    whole, split = Toy(), Toy()
    one, four = make_step(whole), make_step(split, accumulation=4)
    for images, targets in batches(3):
        parts = [slice(i, i + 2) for i in range(0, BATCH, 2)]
        expected = one([MicroBatch(images, targets, KEEP)], 1e-3)
        result = four([MicroBatch(images[p], targets[p], KEEP[:, p]) for p in parts], 1e-3)
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert result.norm == pytest.approx(expected.norm, rel=1e-5)
    expected = weights_of(whole)
    error = np.linalg.norm(weights_of(split) - expected) / np.linalg.norm(expected)
    assert error < 1e-5


def toy_output(model: Toy, images: np.ndarray) -> np.ndarray:
    """What the toy computes, in torch."""

    def dense(layer: Dense, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (torch.from_numpy(p.asnumpy()) for p in (layer.weight, layer.bias))
        return torch.nn.functional.linear(x, weight, bias)

    x = dense(model.body, torch.from_numpy(images).flatten(1))
    x = x + torch.nn.functional.gelu(dense(model.branch, x)) * torch.from_numpy(KEEP).T
    return dense(model.head, x).numpy()


class BoxesAndMasks(nn.Cell):
    """A loss of two targets of different shapes and types."""

    def construct(self, output, boxes, masks):
        by_box = ops.square(output[:, :4] - boxes.mean(1)).mean()
        return by_box + ops.square(output[:, 4] - ops.cast(masks, ms.float32).mean((1, 2))).mean()


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_targets_may_be_several_arrays(accumulation: int):
    """Boxes (N, 3, 4) and masks (N, 5, 6), against the same loss in torch; each step its own."""
    rng = np.random.default_rng(2)
    model = Toy()
    step = build_train_step(
        model, BoxesAndMasks(), weight_decay=0, clip_grad=0, accumulation=accumulation
    )
    for _ in range(2):
        images = rng.normal(size=(BATCH, 3, 32, 32)).astype(np.float32)
        boxes = rng.normal(size=(BATCH, 3, 4)).astype(np.float32)
        masks = rng.integers(0, 2, (BATCH, 5, 6)).astype(np.uint8)
        parts = np.split(np.arange(BATCH), accumulation)
        result = step(
            [MicroBatch(images[p], (boxes[p], masks[p]), KEEP[:, p]) for p in parts], 1e-9
        )
        output = toy_output(model, images)
        expected = np.square(output[:, :4] - boxes.mean(1)).mean()
        expected += np.square(output[:, 4] - masks.mean((1, 2))).mean()
        assert result.loss == pytest.approx(expected, rel=1e-5)
        assert result.finite and result.norm > 0


@pytest.mark.slow
def test_an_overflow_leaves_everything_as_it_was_and_halves_the_scale():
    model = Toy()
    scale = LossScale(2.0**10, window=2, dynamic=True)
    step = make_step(model, scale=scale)
    (images, targets), *_ = batches(1)
    good = MicroBatch(images, targets, KEEP)
    assert step([good], 1e-3).finite
    before = weights_of(model)
    bad = images.copy()
    bad[0, 0, 0, 0] = np.inf
    result = step([MicroBatch(bad, targets, KEEP)], 1e-3)
    assert not result.finite
    np.testing.assert_array_equal(weights_of(model), before)
    assert scale.scale.asnumpy() == 2.0**9
    assert step([good], 1e-3).finite
    assert (weights_of(model) != before).any()


@pytest.mark.slow
def test_the_scale_does_not_change_the_step():
    """A power of two scales float32 gradients without rounding."""
    plain, scaled = Toy(), Toy()
    (images, targets), *_ = batches(1)
    batch = [MicroBatch(images, targets, KEEP)]
    assert make_step(plain)(batch, 1e-3) == make_step(scaled, scale=LossScale(256, 9, True))(
        batch, 1e-3
    )
    np.testing.assert_array_equal(weights_of(plain), weights_of(scaled))


def test_global_norm_is_exact_for_many_elements():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((1000, 1000), (7,), ())]
    expected = np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))
    norm = _GlobalNorm()(*(Tensor(a) for a in arrays)).asnumpy()
    assert norm == pytest.approx(expected, rel=1e-6)


class _GlobalNorm(nn.Cell):
    def construct(self, a, b, c):
        return global_norm((a, b, c))


class TrainsOnly(nn.Cell):
    """A model whose output is 0 unless it trains; stochastic depth is such a thing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = ms.Parameter(Tensor(2.0, ms.float32), "weight")

    def construct(self, images: Tensor, drop_path_mask: Tensor | None) -> Tensor:
        return self.weight * ops.mean(images) if self.training else 0 * self.weight


class Difference(nn.Cell):
    def construct(self, output: Tensor, target: Tensor) -> Tensor:
        return output - ops.mean(target)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_new_size_after_an_evaluation_is_trained_on(accumulation: int):
    """The step compiles its graph then, while the model may still be in evaluation mode."""
    model = TrainsOnly()
    step = build_train_step(model, Difference(), accumulation=accumulation)
    for side in (4, 6):
        batch = MicroBatch(np.ones((1, 3, side, side), np.float32), np.zeros(1, np.float32))
        assert step([batch] * accumulation, lr=1e-6).loss == pytest.approx(2, rel=1e-4)
        model.set_train(False)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_targets_may_follow_from_the_model_as_it_is(accumulation: int):
    """A micro-batch is completed just before its pass, by a model that trains."""
    model = TrainsOnly()
    seen = []

    def complete(batch: MicroBatch) -> MicroBatch:
        seen.append((float(model.weight.asnumpy()), model.training))
        return replace(batch, targets=batch.targets + np.float32(len(seen)))

    step = build_train_step(model, Difference(), accumulation=accumulation, complete=complete)
    batch = MicroBatch(np.ones((1, 3, 4, 4), np.float32), np.zeros(1, np.float32))
    model.set_train(False)
    losses = [step([batch] * accumulation, lr=0.5).loss for _ in range(2)]
    weights = [weight for weight, _ in seen]
    assert len(seen) == 2 * accumulation and all(training for _, training in seen)
    assert weights[:accumulation] == [2] * accumulation and weights[-1] < 2
    expected = np.reshape(weights, (2, -1)) - np.arange(1, len(seen) + 1).reshape(2, -1)
    np.testing.assert_allclose(losses, expected.mean(1), rtol=1e-6)
