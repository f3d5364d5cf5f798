"""Pillow's resize of a part of a picture: in C++ where that was built, else by Pillow itself.

Of the pixels that a resize to the shorter side computes, a center crop throws almost half away; the
C++ code (resample.cpp) computes only those that are wanted. It is byte-equal to Pillow, which is
tried out when it is loaded, since Pillow's versions differ in which of the two passes comes first.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).parent / "_resample.so"

Box = tuple[int, int, int, int]
# (source size, target size), (width, height) each, to whether the pass down comes first.
PassOrder = Callable[[tuple[int, int], tuple[int, int]], bool]

_BICUBIC = {Image.Resampling.BICUBIC: 1, Image.Resampling.BILINEAR: 0}


def resize_part(
    image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling
) -> np.ndarray:
    """Return what `image.resize(size, resampling).crop(box)` holds.

    Args:
        image: an RGB picture.
        size: (width, height) to resize to.
        box: (left, top, right, bottom) within that size.
        resampling: BICUBIC or BILINEAR.

    Returns:
        uint8 (bottom - top, right - left, 3).
    """
    pass_order = _pass_order()
    if pass_order is None:
        return np.asarray(image.resize(size, resampling).crop(box))
    return _resize_part(image, size, box, resampling, pass_order)


def available() -> bool:
    """Whether the C++ code is used."""
    return _pass_order() is not None


def _resize_part(
    image: Image.Image,
    size: tuple[int, int],
    box: Box,
    resampling: Image.Resampling,
    pass_order: PassOrder,
) -> np.ndarray:
    left, top, right, bottom = box
    result = np.empty((bottom - top, right - left, 4), dtype=np.uint8)
    failed = _library().mindtwins_resample(
        image.tobytes("raw", "RGBX"),
        *image.size,
        *size,
        left,
        top,
        right - left,
        bottom - top,
        _BICUBIC[resampling],
        pass_order(image.size, size),
        ctypes.c_void_p(result.ctypes.data),
    )
    if failed:
        raise MemoryError(f"no memory to resize a picture to {size[0]} x {size[1]}")
    return result[:, :, :3]


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(FILE))


@functools.cache
def _pass_order() -> PassOrder | None:
    """The rule of the Pillow at hand; None where it is another one, or the C++ code is missing."""
    if not FILE.exists():
        return None
    try:
        _library()
    except OSError:  # built for another machine
        return None
    return next((rule for rule in (_across_first, _by_height) if _agrees(rule)), None)


def _across_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    return False


def _by_height(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Pillow 13: down first where that takes away more than twice as many rows as columns."""
    fewer_columns, fewer_rows = (old - new for old, new in zip(source, target, strict=True))
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


def _agrees(rule: PassOrder) -> bool:
    """Whether pictures come out as Pillow's for sizes on which the rules and filters differ."""
    pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, (24, 18, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for size in ((15, 9), (9, 20), (30, 9), (17, 22), (17, 21), (25, 40)):
        for resampling in _BICUBIC:
            expected = np.asarray(image.resize(size, resampling))
            found = _resize_part(image, size, (0, 0, *size), resampling, rule)
            if not np.array_equal(found, expected):
                return False
    return True
