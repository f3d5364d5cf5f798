"""Real pictures of any size without a data set: crops of the two photographs of scikit-learn."""

from __future__ import annotations

import numpy as np

from mindtwins.data.normalize import Normalize
from mindtwins.errors import UserError

_STEP = 8  # pixels from one crop of a photograph to the next, down and across


def photograph_crops(count: int, height: int, width: int) -> np.ndarray:
    """Crops of both in turns, each a little further on: uint8 (count, height, width, 3).

    They are 427 x 640 pixels; what lies beyond is their mirror image.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UserError(
            "the two photographs are scikit-learn's, which is not installed:"
            " pip install scikit-learn"
        ) from error
    last = _STEP * (count - 1)
    images = [
        np.pad(
            image,
            (
                (0, max(0, height + last - image.shape[0])),
                (0, max(0, width + last - image.shape[1])),
                (0, 0),
            ),
            "symmetric",
        )
        for image in load_sample_images().images
    ]
    starts = [_STEP * number for number in range(count)]
    return np.stack([images[i % 2][s : s + height, s : s + width] for i, s in enumerate(starts)])


def normalized_crops(count: int, channels: int, height: int, width: int) -> np.ndarray:
    """The same as a model of ImageNet sees them: float32 (count, channels, height, width).

    For another number of channels than three, red, green and blue repeat.
    """
    normalize = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pictures = [normalize(pixels) for pixels in photograph_crops(count, height, width)]
    return np.stack(pictures)[:, np.arange(channels) % 3]
