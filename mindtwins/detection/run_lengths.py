"""Masks of objects as COCO writes them, polygons and run lengths, and as bitmaps.

A run-length code counts pixels column by column, those outside of the object first. It is written
as a list of numbers, or as a string: each number, from the fourth on less that before the last,
in digits of five bits, the lowest first, with a sixth bit where another digit follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindtwins.detection.cocotools import cocotools

# A polygon has three corners, of two numbers each.
SHORTEST_POLYGON = 6
# How far a corner may lie outside of the picture, in sides of it. pycocotools walks along each edge
# pixel by pixel in numbers of 32 bits, and ends the process where they overflow.
_FARTHEST = 10
# No number of a picture is as large, not even an area of it. JSON has whole numbers of any length.
_LARGEST = 1e12


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the bitmap of an annotation's segmentation, uint8 (height, width) of 0 and 1.

    Args:
        segmentation: a list of polygons, x y x y ..., or a run-length code. It is sound; see
            `describe_flaw`.
        height: of the picture.
        width: of it.
    """
    tools = cocotools("mask")
    if isinstance(segmentation, list):
        code = tools.merge(tools.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = tools.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return tools.decode(code)


def encode_masks(masks: np.ndarray) -> list[dict]:
    """Return the run-length codes of bitmaps, as a JSON file can hold them.

    Args:
        masks: bool or uint8 (n, height, width).
    """
    columns_first = np.asfortranarray(np.moveaxis(masks, 0, 2).astype(np.uint8))
    codes = cocotools("mask").encode(columns_first)
    return [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in codes]


def describe_flaw(segmentation: Any, height: int, width: int) -> str:
    """Return what is wrong with a segmentation, as the end of a sentence; empty if nothing is.

    Args:
        segmentation: of an annotation; None where there is none.
        height: of its picture.
        width: of it.
    """
    if isinstance(segmentation, list):
        return _polygons_flaw(segmentation, height, width)
    if isinstance(segmentation, dict):
        return _code_flaw(segmentation, height, width)
    return "has no segmentation, neither polygons nor a run-length code"


def _polygons_flaw(polygons: list, height: int, width: int) -> str:
    if not polygons:
        return "has a segmentation without a polygon of three corners"
    for polygon in polygons:
        if not isinstance(polygon, list) or not are_finite(polygon):
            return f"has a polygon that is no list of numbers below {_LARGEST:g}"
        if len(polygon) % 2 or len(polygon) < SHORTEST_POLYGON:
            return f"has a polygon of {len(polygon)} numbers, not of three x y pairs or more"
        for numbers, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(numbers) < -_FARTHEST * side or max(numbers) > (_FARTHEST + 1) * side:
                return (
                    f"has a polygon with a corner more than {_FARTHEST} times the picture's "
                    f"{width} x {height} pixels outside of it"
                )
    return ""


def _code_flaw(code: dict, height: int, width: int) -> str:
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        return (
            f"has a run-length code of the size {size}, but its picture is {height} high and "
            f"{width} wide"
        )
    if isinstance(counts, str):
        read = read_counts(counts)
        counts = None if read is None else read.tolist()
    pixels = height * width
    # Numbers of Python, which do not wrap around.
    if not isinstance(counts, list) or not all(
        isinstance(count, int) and 0 <= count <= pixels for count in counts
    ):
        return "has a run-length code that is damaged"
    total = sum(counts)
    if total != pixels:
        return (
            f"has a run-length code of {total} pixels, but its picture has "
            f"{height} x {width} = {pixels}"
        )
    return ""


def read_counts(text: str) -> np.ndarray | None:
    """Return the numbers of a run-length code's string, int64 (n,); None if it is damaged."""
    digits = (
        np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    )
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts)
    if places.max() > 6:  # more than 32 bits
        return None
    numbers = np.add.reduceat((digits & 31) << (5 * places), starts)
    negative = digits[ends - 1] & 16 != 0
    numbers -= negative.astype(np.int64) << (5 * (ends - starts))
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def are_finite(values: Sequence[Any]) -> bool:
    """Whether all of them are numbers, and of a size that one of a picture can have."""
    return all(isinstance(value, int | float) and abs(value) < _LARGEST for value in values)
