"""AdamW against torch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, Tensor

from mindtwins.training.groups import Group
from mindtwins.training.optimizer import AdamW


def test_steps_equal_torchs():
    """Decay and rate per parameter, a rate that changes, gradients down to the size of eps."""
    rng = np.random.default_rng(0)
    shapes, decays, factors = [(3, 5), (7,), (2, 2, 2)], [0.05, 0.0, 0.3], [1.0, 0.5, 0.1]
    starts = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    ours = [Parameter(Tensor(start), name=f"p{i}") for i, start in enumerate(starts)]
    theirs = [torch.nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]
    optimizer = AdamW(
        [Group(*row) for row in zip(ours, decays, factors, strict=True)], (0.8, 0.99), 1e-6
    )
    reference = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay} for p, decay in zip(theirs, decays, strict=True)],
        betas=(0.8, 0.99),
        eps=1e-6,
    )
    for step in range(30):
        lr = 0.1 / (step + 1)
        gradients = [
            (rng.normal(size=shape) * 10.0 ** rng.integers(-7, 1)).astype(np.float32)
            for shape in shapes
        ]
        for p, gradient, group, factor in zip(
            theirs, gradients, reference.param_groups, factors, strict=True
        ):
            p.grad = torch.tensor(gradient, dtype=torch.float64)
            group["lr"] = lr * factor
        reference.step()
        # Mutable: otherwise the tensors are constants, and each step is compiled anew.
        optimizer(ms.mutable(tuple(Tensor(g) for g in gradients)), Tensor(lr, ms.float32))
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.asnumpy(), q.detach().numpy(), rtol=3e-6, atol=3e-7)
    assert optimizer.step.asnumpy() == 30


@pytest.mark.slow
def test_a_constant_gradient_makes_steps_of_the_rate():
    """To rounding, with the betas of the recipes: 1 - beta ** t has few digits for small t."""
    weight = Parameter(Tensor(np.zeros(2, np.float32)), name="p")
    optimizer = AdamW([Group(weight, 0.0, 1.0)])
    gradient = ms.mutable((Tensor(np.float32([3.0, -400.0])),))
    for _ in range(200):
        weight.set_data(Tensor(np.zeros(2, np.float32)))
        optimizer(gradient, Tensor(0.5, ms.float32))
        np.testing.assert_allclose(weight.asnumpy(), [-0.5, 0.5], rtol=1e-6)


def test_state_is_named_after_the_parameters():
    optimizer = AdamW([Group(Parameter(Tensor([1.0]), name="head.bias"), 0.0, 1.0)])
    assert [p.name for p in optimizer.get_parameters()] == [
        "head.bias",
        "optimizer.exp_avg.head.bias",
        "optimizer.exp_avg_sq.head.bias",
        "optimizer.step",
    ]
