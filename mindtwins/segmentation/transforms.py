"""The training and test transforms of the published segmentors.

They are MMSegmentation's definitions (`Resize`, `RandomCrop`, `RandomFlip`,
`PhotoMetricDistortion`, `Normalize`, `Pad`), with every draw from the generator that is passed in.
Pictures are uint8 (h, w, 3) RGB until they are normalized, labels uint8 (h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mindtwins.data.normalize import Normalize
from mindtwins.data.opencv_resampling import rescaled_size, resize_image, resize_labels
from mindtwins.errors import UserError
from mindtwins.segmentation.color import HUES, hsv_to_rgb, rgb_to_hsv
from mindtwins.segmentation.dataset import IGNORED

SCALE = (2048, 512)
RATIO_RANGE = (0.5, 2.0)
CROP_ATTEMPTS = 10

BRIGHTNESS = 32
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18


def random_scale(
    scale: tuple[int, int], ratio_range: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int]:
    """Draw a multiple of `scale`, cut to whole pixels; the factor is uniform in `ratio_range`."""
    ratio = rng.uniform(*ratio_range)
    return int(scale[0] * ratio), int(scale[1] * ratio)


def random_crop_box(
    labels: np.ndarray, size: int, category_max_ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom) of a crop of at most size x size.

    A box in which one class has `category_max_ratio` of the labeled pixels or more, or in which no
    pixel is labeled, is drawn again, up to ten times.
    """
    box = _draw_box(labels.shape, size, rng)
    if category_max_ratio < 1:
        for _ in range(CROP_ATTEMPTS):
            left, top, right, bottom = box
            counts = np.bincount(labels[top:bottom, left:right].ravel(), minlength=IGNORED + 1)
            counts = counts[:IGNORED]
            # A class alone has all pixels, so this also asks for two classes.
            if counts.max() < category_max_ratio * counts.sum():
                break
            box = _draw_box(labels.shape, size, rng)
    return box


def _draw_box(
    shape: tuple[int, ...], size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    height, width = shape
    top = int(rng.integers(max(height - size, 0) + 1))
    left = int(rng.integers(max(width - size, 0) + 1))
    return left, top, min(left + size, width), min(top + size, height)


def scale_levels(levels: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Return levels * factor + offset in float32, clipped to 0..255 and cut to integers.

    Args:
        levels: uint8 of any shape.
    """
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return table.clip(0, 255).astype(np.uint8)[levels]


def distort_colors(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    Brightness: an offset in -32 to 32. Contrast: a factor of all levels in 0.5 to 1.5, before or
    after saturation and hue. Saturation: a factor of it in 0.5 to 1.5. Hue: turned by a whole
    number of 2 degrees in -18 to 17.
    """
    if rng.integers(2):
        pixels = scale_levels(pixels, offset=rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.integers(2) == 1
    contrast = rng.uniform(*CONTRAST) if rng.integers(2) else 1.0
    if contrast_first and contrast != 1:
        pixels = scale_levels(pixels, contrast)
    if rng.integers(2):
        hsv = rgb_to_hsv(pixels)
        hsv[1] = scale_levels(hsv[1], rng.uniform(*SATURATION))
        pixels = hsv_to_rgb(hsv)
    if rng.integers(2):
        hsv = rgb_to_hsv(pixels)
        turned = (np.arange(HUES) + int(rng.integers(-HUE, HUE))) % HUES
        hsv[0] = turned.astype(np.uint8)[hsv[0]]
        pixels = hsv_to_rgb(hsv)
    if not contrast_first and contrast != 1:
        pixels = scale_levels(pixels, contrast)
    return pixels


class SegmentationTransform:
    """A pair and a random generator to a float32 (3, size, size) picture and int32 (size, size)
    labels.

    Resized to a random multiple of `scale` keeping its shape, cropped, flipped, colors distorted,
    normalized; where the picture is smaller than the crop it is padded to the right and below, the
    picture with 0, the labels with 255.

    Args:
        size: side of the square the model sees, in pixels.
        mean: per-channel mean of x / 255.
        std: per-channel standard deviation.
        scale: the limits of the sides that `ratio_range` multiplies; see `rescaled_size`.
        ratio_range: range of the factor.
        category_max_ratio: the largest part of a crop that one class should have; 1 for any.
        hflip: probability of a flip.
        photometric_distortion: whether to distort the colors.

    Raises:
        UserError: a value is outside its range.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        scale: tuple[int, int] = SCALE,
        ratio_range: tuple[float, float] = RATIO_RANGE,
        category_max_ratio: float = 0.75,
        hflip: float = 0.5,
        photometric_distortion: bool = True,
    ) -> None:
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise UserError(f"ratio_range is {ratio_range}: it must ascend and be above 0")
        if not 0 <= category_max_ratio <= 1:
            raise UserError(f"category_max_ratio is {category_max_ratio}: it must lie in 0 to 1")
        self.image_size = size
        self.scale = scale
        self.ratio_range = ratio_range
        self.category_max_ratio = category_max_ratio
        self.hflip = hflip
        self.photometric_distortion = photometric_distortion
        self.normalize = Normalize(mean, std)

    def __call__(
        self, image: Image.Image | np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the augmented pair."""
        pixels = np.asarray(image)
        scale = random_scale(self.scale, self.ratio_range, rng)
        target = rescaled_size(pixels.shape[1], pixels.shape[0], scale)
        labels = resize_labels(labels, target)
        box = random_crop_box(labels, self.image_size, self.category_max_ratio, rng)
        left, top, right, bottom = box
        labels = labels[top:bottom, left:right]
        # Resizing does not look beyond a pixel's neighbors, so only the crop needs to be done.
        pixels = resize_image(pixels, target, box)
        if rng.random() < self.hflip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if self.photometric_distortion:
            pixels = distort_colors(pixels, rng)
        height, width = labels.shape
        picture = np.zeros((3, self.image_size, self.image_size), dtype=np.float32)
        self.normalize(pixels, out=picture[:, :height, :width])
        padded = np.full(picture.shape[1:], IGNORED, dtype=np.int32)
        padded[:height, :width] = labels
        return picture, padded


class TestTransform:
    """A picture to its views: resized to fit a scale, keeping its shape, and normalized.

    Args:
        mean: per-channel mean of x / 255.
        std: per-channel standard deviation.
        scale: the limits of the sides; see `rescaled_size`.
        ratios: multiples of `scale`, one view each.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        scale: tuple[int, int] = SCALE,
        ratios: Sequence[float] = (1.0,),
    ) -> None:
        self.scales = [(int(scale[0] * ratio), int(scale[1] * ratio)) for ratio in ratios]
        self.normalize = Normalize(mean, std)

    def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """The (width, height) of the views of a picture."""
        return [rescaled_size(width, height, scale) for scale in self.scales]

    def __call__(self, image: Image.Image | np.ndarray) -> list[np.ndarray]:
        """Return the views, float32 (3, h, w)."""
        pixels = np.asarray(image)
        sizes = self.sizes(pixels.shape[1], pixels.shape[0])
        return [self.normalize(resize_image(pixels, size)) for size in sizes]
