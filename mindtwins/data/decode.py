"""Image files to RGB pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image
from tqdm import tqdm

from mindtwins.data.levels import DEEP_MODES, to_eight_bits
from mindtwins.data.notices import about_file, tell_once
from mindtwins.errors import UserError

# PIL loads its rarer formats when a file first needs them, and a second thread that arrives in the
# middle of that takes a good TIFF or WebP file for an unknown one. So load them all beforehand.
Image.init()

AnyPath = TypeVar("AnyPath", bound=str | Path)

_ORIENTATION = 0x0112  # EXIF's tag
# What turns a stored picture upright, by EXIF's orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {5, 6, 7, 8}


class UnreadableImage(Exception):
    """An image file is missing, empty, truncated or corrupt; the message says what PIL said."""


def read_rgb(path: str | Path, exif_orientation: bool = False) -> Image.Image:
    """Decode a file to RGB as torchvision's default loader does.

    Transparency is dropped, and unless `exif_orientation` is set the picture stays as it is stored:
    the published accuracies were measured that way. Unlike torchvision's, grays of more than 8 bits
    are scaled; see `mindtwins.data.levels`.

    Raises:
        UnreadableImage: whatever is wrong with the file.
    """
    try:
        with open(path, "rb") as file:
            return decode_rgb(file, path, exif_orientation)
    except OSError as error:
        raise UnreadableImage(describe_damage(error)) from error


def decode_rgb(
    file: BinaryIO,
    name: str | Path,
    exif_orientation: bool = False,
    formats: list[str] | None = None,
) -> Image.Image:
    """As `read_rgb`, for an open file.

    Args:
        name: what notices call it.
        formats: Pillow's names of those that it may have; None: any.

    Raises:
        UnreadableImage: whatever is wrong with the file.
    """
    try:
        with about_file(name):
            return _to_rgb(Image.open(file, formats=formats), name, exif_orientation)
    except Exception as error:
        raise UnreadableImage(describe_damage(error)) from error


def read_thumbnail(path: str, size: tuple[int, int], exif_orientation: bool = False) -> Image.Image:
    """As `read_picture`, shrunk to fit `size`; of a JPEG no more is decoded than that takes."""
    try:
        with about_file(path), open(path, "rb") as file:
            stored = Image.open(file)
            stored.draft(None, (max(size), max(size)))
            image = _to_rgb(stored, path, exif_orientation)
            image.thumbnail(size)
            return image
    except Exception as error:
        raise UserError(f"cannot read image {path} ({describe_damage(error)})") from error


def picture_size(path: str | Path, exif_orientation: bool = False) -> tuple[int, int]:
    """The (width, height) that the header of an image file states.

    Raises:
        UnreadableImage: it is damaged.
    """
    try:
        with about_file(path), Image.open(path) as image:
            width, height = image.size
            swaps = exif_orientation and _orientation(image) in _SWAPS_SIDES
            return (height, width) if swaps else (width, height)
    except Exception as error:
        raise UnreadableImage(describe_damage(error)) from error


def swaps_sides(path: str) -> bool:
    """Whether a picture is shown with width and height exchanged, by its EXIF orientation."""
    with about_file(path), Image.open(path) as image:
        return _orientation(image) in _SWAPS_SIDES


def limit_pixels(max_pixels: int) -> None:
    """Refuse larger pictures from now on: Pillow's own limit, which is half of what it refuses.

    What is above that half is allowed, so it is no reason for a warning.
    """
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def most_pixels() -> float:
    """How many a picture may have; see `limit_pixels`. Pillow's None is no limit."""
    limit = Image.MAX_IMAGE_PIXELS
    return math.inf if limit is None else 2 * limit


def describe_damage(error: Exception) -> str:
    """What is wrong with a file, from what its decoder raised.

    A damaged file surfaces as whatever the decoder meets first: OSError, SyntaxError, ValueError,
    EOFError, struct.error ... all of them mean the same.
    """
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image format that PIL knows, or cut short"
    if isinstance(error, Image.DecompressionBombError):
        return f"{str(error).split(', could')[0]}; allow it with --max_pixels"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return reason or type(error).__name__


def _to_rgb(image: Image.Image, path: str | Path, exif_orientation: bool) -> Image.Image:
    orientation = _orientation(image)
    if orientation in _UPRIGHT and not exif_orientation:
        tell_once(
            "orientation",
            f"{path} is taken as it is stored, although its EXIF orientation is {orientation}; "
            "--exif_orientation true turns such pictures upright",
        )
    deep = image.mode in DEEP_MODES
    rgb = (to_eight_bits(image, path) if deep else image).convert("RGB")
    if orientation in _UPRIGHT and exif_orientation:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an opened file: 1 is upright, also where nothing (sound) is said."""
    if image.format == "TIFF":  # Pillow turns these by itself
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # see `describe_damage`; the picture may be sound
        return 1
    return orientation if isinstance(orientation, int) else 1


def read_picture(path: str | Path, exif_orientation: bool = False) -> Image.Image:
    """As `read_rgb`, for a file that a user named: what is wrong is a UserError."""
    try:
        return read_rgb(path, exif_orientation)
    except UnreadableImage as error:
        raise UserError(f"cannot read image {path} ({error})") from error


def read_pictures(
    paths: Iterable[AnyPath], skip_bad_images: bool = False, exif_orientation: bool = False
) -> Iterator[tuple[AnyPath, Image.Image]]:
    """Yield each path with its picture; one that cannot be read is told of, if not a UserError.

    Raises:
        UserError: not one of them can be read.
    """
    seen = readable = 0
    for path in paths:
        seen += 1
        try:
            picture = read_picture(path, exif_orientation)
        except UserError as error:
            if not skip_bad_images:
                raise UserError(
                    f"{error}: repair or remove it, or pass --skip_bad_images"
                ) from error
            tqdm.write(f"notice: {error}; left out")
            continue
        readable += 1
        yield path, picture
    if seen and not readable:
        raise UserError("none of the images can be read")
