"""Drop path masks, drawn on the host: a function of (seed, step), so a step can be repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindtwins.data.randomness import Purpose, generator_at


def draw_keep(
    rates: Sequence[float], seed: int, step: int, positions: np.ndarray, global_batch: int
) -> np.ndarray:
    """Factors of each residual branch and image: 0 dropped, 1 / (1 - rate) kept.

    Args:
        rates: probability to drop, per branch.
        positions: places of this micro-batch's images in the global batch, for which the masks are
            drawn whole: how it is split over ranks and micro-batches changes nothing.

    Returns:
        float32 (branches, len(positions)).
    """
    rates = np.asarray(rates, np.float64)[:, None]
    uniform = generator_at(seed, Purpose.DROP_PATH, step).random((len(rates), global_batch))
    return ((uniform >= rates) / (1 - rates)).astype(np.float32)[:, positions]
