"""The training and test transforms of the published detectors.

They are MMDetection 2.8's definitions (`Resize`, `RandomFlip`, `RandomCrop`, `AutoAugment` with
DETR's policy, `Normalize`, `Pad`), with every draw, in its order, from the generator that is
passed in. Pictures are uint8 (height, width, 3) RGB until they are normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindtwins.data.normalize import Normalize
from mindtwins.data.opencv_resampling import rescaled_size, resize_image, resize_labels
from mindtwins.detection.dataset import Objects
from mindtwins.detection.detections import Geometry
from mindtwins.errors import UserError

SCALE = (1333, 800)
# What sides are padded to a multiple of: the last stage's stride.
MULTIPLE = 32

# DETR's policy: the shorter sides of pictures that are resized, of those that are resized before a
# crop, and the range of a crop's sides.
SHORT_SIDES = tuple(range(480, 801, 32))
SHORT_SIDES_BEFORE_CROP = (400, 500, 600)
CROP_SIDES = (384, 600)


def resize(
    pixels: np.ndarray, objects: Objects, scale: tuple[int, int]
) -> tuple[np.ndarray, Objects]:
    """Resize a picture to the largest of its shape that fits `scale`, and its objects with it.

    Boxes are cut to the picture, and objects whose boxes have no area in it are left out; masks are
    resized to the nearest pixel.
    """
    size = rescaled_size(pixels.shape[1], pixels.shape[0], scale)
    boxes = clip(objects.boxes * scale_factor(pixels.shape[1::-1], size), size)
    kept = has_area(boxes)
    masks = None
    if objects.masks is not None:
        masks = np.zeros((kept.sum(), *size[::-1]), objects.masks.dtype)
        for resized, mask in zip(masks, objects.masks[kept], strict=True):
            resized[...] = resize_labels(mask, size)
    return resize_image(pixels, size), Objects(boxes[kept], objects.labels[kept], masks)


def scale_factor(old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """What boxes are multiplied by when (width, height) changes, float32 (4,)."""
    across, down = new[0] / old[0], new[1] / old[1]
    return np.array([across, down, across, down], dtype=np.float32)


def clip(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return boxes cut to a picture of (width, height)."""
    return boxes.clip(0, np.array([*size, *size], dtype=np.float32))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (n, 4) have an area, (n,) bool."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def flip(pixels: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """Mirror a picture and its objects: left becomes right."""
    boxes = objects.boxes.copy()
    boxes[:, 0::2] = pixels.shape[1] - objects.boxes[:, 2::-2]
    masks = None if objects.masks is None else objects.masks[:, :, ::-1]
    return pixels[:, ::-1], Objects(boxes, objects.labels, masks)


def crop(
    pixels: np.ndarray, objects: Objects, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, Objects]:
    """Cut out a part of a picture, and keep the objects whose boxes have an area in it.

    Args:
        box: (left, top, right, bottom), within the picture.
    """
    left, top, right, bottom = box
    offset = np.array([left, top, left, top], dtype=np.float32)
    boxes = clip(objects.boxes - offset, (right - left, bottom - top))
    kept = has_area(boxes)
    masks = None if objects.masks is None else objects.masks[kept, top:bottom, left:right]
    return pixels[top:bottom, left:right], Objects(boxes[kept], objects.labels[kept], masks)


def random_crop_box(
    height: int, width: int, sides: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom) of a crop, whose sides are drawn from a range.

    Args:
        height: of the picture, in pixels.
        width: of it.
        sides: the least and the greatest; a shorter side of the picture stays whole.
        rng: draws the crop's height, its width, how far it is from the top, and from the left.
    """
    least, greatest = sides
    rows = int(rng.integers(min(height, least), min(height, greatest) + 1))
    columns = int(rng.integers(min(width, least), min(width, greatest) + 1))
    top = int(rng.integers(height - rows + 1))
    left = int(rng.integers(width - columns + 1))
    return left, top, left + columns, top + rows


def detr_policy(
    pixels: np.ndarray, objects: Objects, rng: np.random.Generator
) -> tuple[np.ndarray, Objects]:
    """Resize, or resize, crop and resize, each with probability 1/2.

    The shorter side becomes 480 to 800 pixels, in steps of 32, and the longer one at most 1333. A
    crop is of a picture whose shorter side is 400, 500 or 600, and is 384 to 600 pixels wide and
    high; it may hold no object at all.
    """
    longest = max(SCALE)
    if rng.integers(2):
        short = SHORT_SIDES_BEFORE_CROP[rng.integers(len(SHORT_SIDES_BEFORE_CROP))]
        pixels, objects = resize(pixels, objects, (longest, short))
        box = random_crop_box(pixels.shape[0], pixels.shape[1], CROP_SIDES, rng)
        pixels, objects = crop(pixels, objects, box)
    short = SHORT_SIDES[rng.integers(len(SHORT_SIDES))]
    return resize(pixels, objects, (longest, short))


def padded(height: int, width: int) -> tuple[int, int]:
    """The sides of a picture that is padded to a multiple of 32 pixels."""
    return -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE


@dataclass(frozen=True)
class BatchSizes:
    """Which sizes batches are padded to.

    A graph is compiled for each size, so few are better; MMDetection pads to the largest picture of
    a batch. What is added has no anchors to learn from, but is seen by attention and, at the rim,
    by convolutions, just as what fills up a batch's smaller pictures.

    Attributes:
        scale: the limits of the pictures' sides.
        steps: into how many even parts each limit is divided; 0: sizes are only padded to 32.
    """

    scale: tuple[int, int] = SCALE
    steps: int = 0

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a batch whose largest pictures, padded, have such sides."""
        if not self.steps:
            return height, width
        short, long = sorted(self.scale)
        smaller = short if min(height, width) <= padded(short, short)[0] else long
        limits = (smaller, long) if height <= width else (long, smaller)
        return self._next(height, limits[0]), self._next(width, limits[1])

    def _next(self, side: int, limit: int) -> int:
        parts = (padded(-(-limit * part // self.steps), 0)[0] for part in range(1, self.steps + 1))
        return next((part for part in parts if part >= side), side)


def normalize_and_pad(pixels: np.ndarray, normalize: Normalize) -> np.ndarray:
    """Return the normalized picture with zeros on its right and below it, float32 (3, H, W)."""
    height, width = pixels.shape[:2]
    picture = np.zeros((3, *padded(height, width)), dtype=np.float32)
    normalize(pixels, out=picture[:, :height, :width])
    return picture


@dataclass(frozen=True)
class Sample:
    """An augmented picture.

    Attributes:
        picture: float32 (3, H, W), normalized and padded to multiples of 32 pixels.
        objects: what is in it; the masks are not padded.
        height: of the picture, without padding.
        width: of it.
    """

    picture: np.ndarray
    objects: Objects
    height: int
    width: int


class DetectionTransform:
    """A picture, its objects and a random generator to what is learned from.

    Resized to fit `scale` and then flipped, as in the 1x recipes; or, with `multi_scale`, flipped
    and then resized and cropped by DETR's policy, as in the 3x recipes.

    Args:
        mean: per-channel mean of x / 255.
        std: per-channel standard deviation.
        scale: the limits of the sides; see `rescaled_size`. DETR's policy has its own.
        hflip: probability of a flip.
        multi_scale: whether to follow DETR's policy.

    Raises:
        UserError: a value is outside its range.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        scale: tuple[int, int] = SCALE,
        hflip: float = 0.5,
        multi_scale: bool = False,
    ) -> None:
        _check_scale(scale)
        self.scale = scale
        self.hflip = hflip
        self.multi_scale = multi_scale
        self.normalize = Normalize(mean, std)

    def __call__(
        self, image: Image.Image | np.ndarray, objects: Objects, rng: np.random.Generator
    ) -> Sample:
        """Return the augmented picture with its objects."""
        pixels = np.asarray(image)
        flips = rng.random() < self.hflip
        # Resizing before or after a flip differs: the nearest pixel is chosen from the left.
        if not self.multi_scale:
            pixels, objects = resize(pixels, objects, self.scale)
        if flips:
            pixels, objects = flip(pixels, objects)
        if self.multi_scale:
            pixels, objects = detr_policy(pixels, objects, rng)
        picture = normalize_and_pad(pixels, self.normalize)
        return Sample(picture, objects, pixels.shape[0], pixels.shape[1])


class TestTransform:
    """A picture to what the detector sees: resized to fit a scale, normalized and padded.

    Args:
        mean: per-channel mean of x / 255.
        std: per-channel standard deviation.
        scale: the limits of the sides; see `rescaled_size`.

    Raises:
        UserError: the scale is not two numbers of pixels.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        scale: tuple[int, int] = SCALE,
    ) -> None:
        _check_scale(scale)
        self.scale = scale
        self.normalize = Normalize(mean, std)

    def geometry(self, width: int, height: int) -> Geometry:
        """How a picture of a size will lie in what the detector sees."""
        size = rescaled_size(width, height, self.scale)
        return Geometry(size[1], size[0], scale_factor((width, height), size), height, width)

    def __call__(self, image: Image.Image | np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Return float32 (3, H, W), in which the picture is at the top left, and where it is."""
        pixels = np.asarray(image)
        geometry = self.geometry(pixels.shape[1], pixels.shape[0])
        pixels = resize_image(pixels, (geometry.width, geometry.height))
        return normalize_and_pad(pixels, self.normalize), geometry


def _check_scale(scale: tuple[int, int]) -> None:
    if len(scale) != 2 or min(scale) < 1:
        raise UserError(f"resize_scale is {scale}: give two sides of 1 pixel or more")
