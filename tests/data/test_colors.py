from __future__ import annotations

import numpy as np

from mindtwins.data.colors import distinct_colors


def test_distinct_colors() -> None:
    colors = np.array(distinct_colors(40), float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=2) + 1e3 * np.eye(40)
    assert distances.min() > 10
    assert distances[:12, :12].min() > 60
