"""Layer normalisation."""

from __future__ import annotations

from mindspore import nn


class LayerNorm(nn.LayerNorm):
    """Normalise the last axis; parameters `gamma` (ones) and `beta` (zeros), each (channels,).

    `epsilon` has no default: MindSpore's is 1e-7, torch's 1e-5, and Twins uses two values.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__((channels,), epsilon=epsilon)
