"""The dynamic loss scale."""

from __future__ import annotations

import pytest
from mindspore import Tensor

from mindtwins.training.loss_scale import LossScale


def test_halves_on_overflow_and_doubles_after_a_window():
    scale = LossScale(8.0, window=3, dynamic=True)
    history = []
    for finite in (True, True, False, True, True, True, True):
        scale(Tensor(finite))
        history.append((float(scale.scale.asnumpy()), int(scale.good_steps.asnumpy())))
    assert history == [(8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (8, 0), (8, 1)]


@pytest.mark.slow
def test_static_scale_stays_one():
    scale = LossScale(8.0, window=1, dynamic=False)
    scale(Tensor(True))
    scale(Tensor(False))
    assert float(scale.scale.asnumpy()) == 1
