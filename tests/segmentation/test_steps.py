"""Training steps of segmentors against PyTorch's: losses, weights and batch statistics."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from parity import copy_weights, name_in_torch, on_or_off

import mindtwins
from mindtwins.reference.segmentation import create_segmentation_reference
from mindtwins.segmentation.dataset import IGNORED
from mindtwins.segmentation.loss import PixelCrossEntropy
from mindtwins.training.groups import parameter_groups
from mindtwins.training.loss_scale import LossScale
from mindtwins.training.optimizer import AdamW
from mindtwins.training.step import MicroBatch, TrainStep

STEPS, SIZE, CLASSES, LR, DECAY = 5, 64, 7, 1e-4, 10.0

# What `no_decay: [norm, pos_block]` exempts: words of the official names.
EXEMPT = {"norm", "norm1", "norm2", "norm_list", "pos_block"}


class Factors(torch.nn.Module):
    """Dropout with given factors (N, channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors[:, :, None, None]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fpn_svt_tiny", marks=pytest.mark.endurance),
        pytest.param("upernet_svt_tiny", marks=pytest.mark.slow),  # the other and more
    ],
)
def test_steps_equal_pytorchs(name: str):
    """Forward with batch statistics and dropout, backward, AdamW with the recipes' exemptions."""
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    weights = (1.0, 0.4) if name.startswith("upernet") else (1.0,)
    reference = on_or_off(
        create_segmentation_reference(name, num_classes=CLASSES, official_names=True)
    ).train()
    model = mindtwins.create_segmentor(name, num_classes=CLASSES)
    copy_weights(reference, model)
    optimizer = AdamW(parameter_groups(model, DECAY, ("norm", "pos_block")))
    scale = LossScale(1, 1, dynamic=False)
    step = TrainStep(model.set_train(), PixelCrossEntropy(weights), optimizer, scale)
    # The decay takes 0.5 % off a weight in all, 50 times as much as the tolerance.
    decay_of = {
        n: DECAY if EXEMPT.isdisjoint(n.split(".")) else 0.0
        for n, _ in reference.named_parameters()
    }
    theirs = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay_of[n]} for n, p in reference.named_parameters()],
        lr=LR,
    )
    heads = [reference.decode_head]
    if name.startswith("upernet"):
        heads.append(reference.auxiliary_head)
    for head in heads:
        head.dropout = Factors()

    for _ in range(STEPS):
        images = rng.normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
        labels = rng.integers(0, CLASSES, (4, SIZE, SIZE)).astype(np.int32)
        labels[rng.random(labels.shape) < 0.1] = IGNORED
        kept = rng.random((4, model.dropout_channels)) >= model.dropout_rate
        dropout_mask = (kept / (1 - model.dropout_rate)).astype(np.float32)
        start = 0
        for head, channels in zip(heads, model.dropped, strict=True):
            head.dropout.factors = torch.from_numpy(dropout_mask[:, start : start + channels])
            start += channels
        loss = 0
        for output, weight in zip(reference(torch.from_numpy(images)), weights, strict=True):
            resized = torch.nn.functional.interpolate(output, size=(SIZE, SIZE), mode="bilinear")
            total = torch.nn.functional.cross_entropy(
                resized, torch.from_numpy(labels).long(), ignore_index=IGNORED, reduction="sum"
            )
            loss = loss + weight * total / labels.size
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        result = step([MicroBatch(images, labels, None, dropout_mask)], LR)
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)

    expected = {n: t.numpy() for n, t in reference.state_dict().items()}
    found = {name_in_torch(p.name): p.asnumpy() for p in model.get_parameters()}
    for kind in ("running_mean", "running_var", "weight", "bias"):
        ours, reference_s = (
            np.concatenate([side[n].ravel() for n in found if n.endswith(kind)])
            for side in (found, expected)
        )
        error = np.linalg.norm(ours - reference_s) / np.linalg.norm(reference_s)
        assert error < 1e-4, kind
