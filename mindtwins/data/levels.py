"""Gray pictures of more than 8 bits, scaled to 8.

Pillow (and torchvision's loader with it) clips them: all above 255 becomes white.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mindtwins.data.notices import tell_once

# Pillow's modes whose values go beyond 0 to 255.
DEEP_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}

# Formats whose mode I means 16 bits.
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF

# What may stand for white where the file does not say. The first that no value is above is taken.
_WHITES = {"I": (255, 65535), "F": (1, 255, 65535)}


def to_eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """A picture of mode L from one of the deep modes; `path` is for notices.

    16-bit levels are divided by 257 and rounded. So are TIFF's 12 bits, by 4095 / 255. Integers of
    32 bits and floats have no white of their own: it is 1 where no float is above 1, 255 where no
    value is, 65535 where none is above that, and else the smallest value is black and the largest
    white. Such a guess is told once, but for floats from 0 to 1, which are usual.
    """
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (0, 0)
    black, white = 0, _stated_white(image)
    if white is not None:
        if 0 < high <= white // 16:
            tell_once(
                ("dark", image.mode),
                f"{path}: its largest value is {high} of {white}, so it is nearly black; convert "
                "such files to 8 bits if their white is another",
            )
        return Image.fromarray(_scaled(values, black, white, _is_inverted(image)))
    fitting = (white for white in _WHITES[image.mode] if low >= 0 and high <= white)
    white = next(fitting, None)
    scale = (image.mode, white)
    if white is None:
        black, white = low, high
    if scale != ("F", 1):
        kind = "integers of 32 bits" if image.mode == "I" else "floats"
        tell_once(
            scale,
            f"{path}: {kind} from {low:g} to {high:g}, taken as {black:g} for black and "
            f"{white:g} for white; convert such files to 8 bits for another scale",
        )
    if scale[1] == 255:  # as Pillow does it
        return image.convert("L")
    return Image.fromarray(_scaled(values, black, white, _is_inverted(image)))


def _scaled(values: np.ndarray, black: float, white: float, inverted: bool) -> np.ndarray:
    if inverted:
        black, white = white, black
    if values.dtype.itemsize == 2:  # a table saves memory and time
        return _scaled(np.arange(65536, dtype=np.float64), black, white, False)[values]
    span = (white - black) or 1
    levels = (values.astype(np.float64) - black) * (255 / span)
    return np.nan_to_num(np.rint(levels), nan=0).clip(0, 255).astype(np.uint8)


def _stated_white(image: Image.Image) -> int | None:
    """The value that stands for white, where the file says so."""
    if image.mode.startswith("I;16"):
        return (1 << _tag(image, _BITS_PER_SAMPLE, 16)) - 1
    if image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS:
        return 65535
    return None


def _is_inverted(image: Image.Image) -> bool:
    return _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def _tag(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value
