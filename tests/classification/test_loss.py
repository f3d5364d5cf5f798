"""The loss against torch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from mindtwins.classification.loss import SoftTargetCrossEntropy


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_soft_targets(dtype: type):
    rng = np.random.default_rng(0)
    logits = (10 * rng.normal(size=(6, 5))).astype(dtype)
    targets = rng.dirichlet(np.ones(5), 6).astype(np.float32)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets).double()
    )
    loss = SoftTargetCrossEntropy()(Tensor(logits), Tensor(targets))
    assert loss.dtype == ms.float32
    assert float(loss.asnumpy()) == pytest.approx(expected.item(), rel=1e-6)
