"""What a training step draws at random inside the model: dropped branches and dropped channels.

Drawn on the host, as a function of (seed, step), so that a step can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import nn

from mindtwins.data.randomness import Purpose, generator_at


def draw_drop_masks(
    model: nn.Cell, seed: int, step: int, positions: np.ndarray, global_batch: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The factors that a model takes in a training step: of its branches, and of its channels.

    Args:
        model: its `drop_path_rates` and, if it has any, `dropout_channels` and `dropout_rate` say
            what is drawn.
        positions: places of this micro-batch's images in the global batch, for which everything is
            drawn whole: how it is split over ranks and micro-batches changes nothing.

    Returns:
        float32 (branches, images), None if no branch is ever dropped; and float32 (images,
        channels), None for models without dropout.
    """
    drop_path_mask = None
    if any(model.drop_path_rates):
        drop_path_mask = _draw(model.drop_path_rates, seed, Purpose.DROP_PATH, step, global_batch)
        drop_path_mask = drop_path_mask[:, positions]
    dropout_mask = None
    if channels := getattr(model, "dropout_channels", 0):
        rates = [model.dropout_rate] * channels
        drawn = _draw(rates, seed, Purpose.DROPOUT, step, global_batch)
        dropout_mask = np.ascontiguousarray(drawn[:, positions].T)
    return drop_path_mask, dropout_mask


def _draw(rates: Sequence[float], seed: int, purpose: Purpose, step: int, count: int) -> np.ndarray:
    """float32 (len(rates), count): 0 with the row's probability, else 1 / (1 - rate)."""
    column = np.asarray(rates, np.float64)[:, None]
    uniform = generator_at(seed, purpose, step).random((len(rates), count))
    return ((uniform >= column) / (1 - column)).astype(np.float32)
