"""Dropped branches and channels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from mindtwins.training.drop_masks import draw_drop_masks


def model(*rates: float, **dropout: float) -> SimpleNamespace:
    return SimpleNamespace(drop_path_rates=rates, **dropout)


def test_rates_and_factors():
    drop_path_mask, _ = draw_drop_masks(model(0.0, 0.25, 0.5), 3, 7, np.arange(20000), 20000)
    assert drop_path_mask.shape == (3, 20000) and drop_path_mask.dtype == np.float32
    assert set(np.unique(drop_path_mask[0])) == {1}
    assert set(np.unique(drop_path_mask[1])) == {0, np.float32(1 / 0.75)}
    assert abs((drop_path_mask[1] == 0).mean() - 0.25) < 0.012  # four standard deviations
    assert abs((drop_path_mask[2] == 0).mean() - 0.5) < 0.014
    assert abs(np.corrcoef(drop_path_mask[1], drop_path_mask[2])[0, 1]) < 0.03


def test_masks_follow_seed_step_and_position_only():
    def draw(seed: int, step: int, positions: np.ndarray) -> list[np.ndarray]:
        drops = model(*[0.5] * 4, dropout_channels=8, dropout_rate=0.5)
        branches, channels = draw_drop_masks(drops, seed, step, positions, 16)
        return [branches.T, channels]

    whole = draw(3, 7, np.arange(16))
    for there, here in zip(whole, draw(3, 7, np.array([5, 2, 11])), strict=True):
        np.testing.assert_array_equal(here, there[[5, 2, 11]])
    for other in (draw(3, 8, np.arange(16)), draw(4, 7, np.arange(16))):
        assert all((a != b).any() for a, b in zip(whole, other, strict=True))


def test_channels_are_dropped_whole_and_only_where_there_is_dropout():
    drops = model(0.0, 0.0, dropout_channels=500, dropout_rate=0.1)
    drop_path_mask, channels = draw_drop_masks(drops, 0, 0, np.arange(64), 64)
    assert drop_path_mask is None
    assert channels.shape == (64, 500) and set(np.unique(channels)) == {0, np.float32(1 / 0.9)}
    assert abs((channels == 0).mean() - 0.1) < 0.007
    assert draw_drop_masks(model(0.0), 0, 0, np.arange(64), 64) == (None, None)
