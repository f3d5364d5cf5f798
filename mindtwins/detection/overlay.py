"""Pictures in which the found objects are drawn: boxes, masks, names and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mindtwins.data.colors import Color
from mindtwins.data.fonts import Lettering
from mindtwins.detection.detections import Detections
from mindtwins.detection.metrics import as_results

OPACITY = 0.5
# Smaller pictures are enlarged by a whole factor, so that there is room for names.
LEAST_SIDE = 256
# In pixels, in a picture of up to 640 x 640; in larger ones they grow with it.
LINE, MARGIN, FONT = 2, 2, 12
USUAL_SIDE = 640


def draw_detections(
    picture: Image.Image,
    detections: Detections,
    classes: Sequence[str],
    palette: Sequence[Color],
) -> Image.Image:
    """Return the picture with the objects in the colors of their classes, the surest on top.

    Each has its box, a label of its name and score, and its mask if there is one. Pictures with
    both sides below 256 pixels are enlarged by a whole factor.

    Args:
        picture: of any mode.
        detections: what was found in it, the surest first.
        classes: the names, by number.
        palette: the colors, by number.
    """
    factor = -(-LEAST_SIDE // max(picture.size))
    size = factor * picture.width, factor * picture.height
    upwards = range(len(detections.scores))[::-1]
    pixels = np.array(picture.convert("RGB"))
    if detections.masks is not None:
        for number in upwards:
            color = np.array(palette[detections.labels[number]])
            mask = detections.masks[number]
            pixels[mask] = np.rint((1 - OPACITY) * pixels[mask] + OPACITY * color)
    drawn = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    scale = max(1.0, math.sqrt(drawn.width * drawn.height) / USUAL_SIDE)
    lettering = Lettering(classes)
    draw = ImageDraw.Draw(drawn)
    for number in upwards:
        label = detections.labels[number]
        text = f"{classes[label]} {100 * detections.scores[number]:.0f} %"
        _draw_box(
            draw, factor * detections.boxes[number], text, palette[label], lettering, scale, size
        )
    return drawn


def _draw_box(
    draw: ImageDraw.ImageDraw,
    box: np.ndarray,
    text: str,
    color: Color,
    lettering: Lettering,
    scale: float,
    size: tuple[int, int],
) -> None:
    """A frame, and above it (within it, where there is no room) its label."""
    line, margin, font_size = (round(scale * pixels) for pixels in (LINE, MARGIN, FONT))
    left, top, right, bottom = (
        min(max(round(float(side)), 0), limit - 1)
        for side, limit in zip(box, (*size, *size), strict=True)
    )
    draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=color, width=line)
    text, font = lettering.fit(text, font_size, size[0] - 2 * margin)
    width, height = round(font.getlength(text)) + 2 * margin, font_size + 2 * margin
    left = max(min(left, size[0] - width), 0)
    top = top - height if top >= height else top
    draw.rectangle((left, top, left + width, top + height), fill=color)
    ink = "black" if _brightness(color) > 140 else "white"
    middle = left + margin, top + height // 2
    draw.text(middle, text, fill=ink, font=font, anchor="lm")


def _brightness(color: Color) -> float:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def as_labels(detections: Detections, classes: Sequence[str]) -> list[dict]:
    """The objects as JSON can hold them, the surest first.

    Returns:
        For each its `name`, `label` (the class's number), `score`, `bbox` (left, top, width and
        height in the picture's pixels) and, if there are masks, `segmentation` (a run-length code
        of COCO's).
    """
    return [{"name": classes[one["label"]], **one} for one in as_results(detections)]
