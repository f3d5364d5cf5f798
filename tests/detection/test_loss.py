"""Losses and their gradients against MMDetection's, in graph mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindtwins.detection.loss import (
    RetinaNetLoss,
    mask_loss,
    proposal_losses,
    region_losses,
    retinanet_losses,
)

CLASSES = 5


def theirs(name: str) -> dict[str, np.ndarray]:
    """A file's arrays; those that were rounded to half precision are float32 again."""
    found = dict(np.load(Path(__file__).parent / "fixtures" / f"{name}.npz"))
    return {
        key: value.astype(np.float32) if value.dtype == np.float16 else value
        for key, value in found.items()
    }


def per_anchor(values: np.ndarray, sizes: np.ndarray, per_pixel: int, each: int) -> list:
    """Maps (2, channels, height, width), one after another, as (2, anchors, each) of a level."""
    counts = 2 * per_pixel * each * sizes.prod(axis=1)
    return [
        level.reshape(2, per_pixel * each, -1).transpose(0, 2, 1).reshape(2, -1, each)
        for level in np.split(values, np.cumsum(counts)[:-1])
    ]


def with_undecided(data: dict[str, np.ndarray]) -> Tensor:
    return Tensor(np.where(data["label_weights"] > 0, data["labels"], -1).astype(np.int32))


def compiled(function: Callable[..., Any], *inputs: Tensor) -> tuple[list, list]:
    """The values of a function of several losses, and the gradients of their sum."""

    def summed(*values: Tensor) -> Any:
        losses = function(*values)
        return sum(losses[1:], losses[0]), losses

    run = ms.jit(ms.value_and_grad(summed, grad_position=(0, 1), has_aux=True))
    ((_, losses), gradients) = run(*inputs)
    return [float(loss) for loss in losses], [gradient.asnumpy() for gradient in gradients]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "per_pixel"), [("retinanet_loss", 9), ("rpn_loss", 3)])
def test_losses_of_anchors(name: str, per_pixel: int) -> None:
    data = theirs(name)
    sizes = data["sizes"]
    classes = CLASSES if name == "retinanet_loss" else 1

    def arranged(logits: str, deltas: str) -> list[np.ndarray]:
        return [
            np.concatenate(per_anchor(data[key], sizes, per_pixel, each), 1)
            for key, each in ((logits, classes), (deltas, 4))
        ]

    logits, deltas = map(Tensor, arranged("logits", "deltas"))
    labels, expected = with_undecided(data), Tensor(data["box_targets"])
    if classes == 1:

        def losses(logits: Tensor, deltas: Tensor) -> Any:
            return proposal_losses(logits[:, :, 0], deltas, labels, expected)
    else:

        def losses(logits: Tensor, deltas: Tensor) -> Any:
            return retinanet_losses(logits, deltas, labels, expected, CLASSES)

    values, gradients = compiled(losses, logits, deltas)
    close(values[0], data["loss_cls"].sum())
    close(values[1], data["loss_bbox"].sum())
    for gradient, theirs_gradient in zip(
        gradients, arranged("logit_gradients", "delta_gradients"), strict=True
    ):
        close(gradient, theirs_gradient)


def test_retinanet_of_levels() -> None:
    data = theirs("retinanet_loss")
    outputs = tuple(
        tuple(Tensor(level.copy()) for level in per_anchor(data[key], data["sizes"], 9, each))
        for key, each in (("logits", CLASSES), ("deltas", 4))
    )
    loss = RetinaNetLoss(CLASSES)(outputs, with_undecided(data), Tensor(data["box_targets"]))
    close(float(loss), data["loss_cls"].sum() + data["loss_bbox"].sum())


@pytest.mark.slow
@pytest.mark.parametrize("filled_up", [0, 7])
def test_losses_of_regions(filled_up: int) -> None:
    """Rows that only fill up a batch change nothing."""
    data = theirs("second_stage_loss")

    def rows(key: str, fill: float = 3.0) -> np.ndarray:
        values = data[key]
        extra = np.full((filled_up, *values.shape[1:]), fill, values.dtype)
        return np.concatenate([values, extra])

    labels = Tensor(rows("labels", -1).astype(np.int32))
    expected = Tensor(rows("box_targets"))

    def losses(logits: Tensor, deltas: Tensor) -> Any:
        return region_losses(logits, deltas, labels, expected, CLASSES)

    values, gradients = compiled(losses, Tensor(rows("logits")), Tensor(rows("deltas")))
    close(values[0], data["loss_cls"])
    close(values[1], data["loss_bbox"])
    close(gradients[0], rows("logit_gradients", 0))
    close(gradients[1], rows("delta_gradients", 0))

    logits = Tensor(rows("mask_logits").transpose(0, 2, 3, 1).copy())
    of_mask = Tensor(rows("mask_labels", -1).astype(np.int32))
    masks = Tensor(rows("mask_targets", 1))

    def masked(logits: Tensor, unused: Tensor) -> Any:
        return mask_loss(logits, of_mask, masks), ops.sum(unused)

    values, gradients = compiled(masked, logits, Tensor(np.zeros(1, np.float32)))
    close(values[0], data["loss_mask"])
    wanted = np.zeros(logits.shape, np.float32)
    numbers = np.arange(len(data["mask_labels"]))
    wanted[numbers, :, :, data["mask_labels"]] = data["mask_gradients"]
    close(gradients[0], wanted)


def test_nothing_to_learn_from() -> None:
    labels = Tensor(np.full((2, 6), -1, np.int32))
    logits, boxes = Tensor(np.ones((2, 6, 3), np.float32)), Tensor(np.ones((2, 6, 4), np.float32))
    for loss in (
        *retinanet_losses(logits, boxes, labels, boxes + 1, 3),
        *proposal_losses(logits[:, :, 0], boxes, labels, boxes + 1),
        *region_losses(logits[0], ops.ones((6, 8), ms.float32), labels[0], boxes[0] + 1, 2),
        mask_loss(ops.ones((6, 28, 28, 3), ms.float32), labels[0], ops.ones((6, 28, 28))),
    ):
        assert float(loss) == 0
