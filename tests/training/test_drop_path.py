"""Drop path masks."""

from __future__ import annotations

import numpy as np

from mindtwins.training.drop_path import draw_keep


def test_rates_and_factors():
    keep = draw_keep([0.0, 0.25, 0.5], 3, 7, np.arange(20000), 20000)
    assert keep.shape == (3, 20000) and keep.dtype == np.float32
    assert set(np.unique(keep[0])) == {1}
    assert set(np.unique(keep[1])) == {0, np.float32(1 / 0.75)}
    assert abs((keep[1] == 0).mean() - 0.25) < 0.012  # four standard deviations
    assert abs((keep[2] == 0).mean() - 0.5) < 0.014
    assert abs(np.corrcoef(keep[1], keep[2])[0, 1]) < 0.03


def test_masks_follow_seed_step_and_position_only():
    whole = draw_keep([0.5] * 4, 3, 7, np.arange(16), 16)
    part = draw_keep([0.5] * 4, 3, 7, np.array([5, 2, 11]), 16)
    np.testing.assert_array_equal(part, whole[:, [5, 2, 11]])
    assert (whole != draw_keep([0.5] * 4, 3, 8, np.arange(16), 16)).any()
    assert (whole != draw_keep([0.5] * 4, 4, 7, np.arange(16), 16)).any()
