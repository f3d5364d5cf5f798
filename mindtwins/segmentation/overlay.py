"""Label maps for people and for programs: pictures with colored classes and a legend, and PNGs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mindtwins.data.colors import Color
from mindtwins.data.fonts import Lettering
from mindtwins.files import atomic_write
from mindtwins.segmentation.dataset import IGNORED

NEAREST = Image.Resampling.NEAREST

OPACITY = 0.6
UNNAMED: Color = (0, 0, 0)  # of pixels without a class
# Smaller pictures are enlarged by a whole factor, so that there is something to see.
LEAST_SIDE = 256
# The legend, in pixels, beside a picture of up to 640 x 640; beside larger ones it grows with them.
LINE, MARGIN, SWATCH, FONT = 20, 8, 12, 13
USUAL_SIDE = 640


def draw_overlay(
    picture: Image.Image, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Color]
) -> Image.Image:
    """Return the picture with its classes in color, and a legend on its right.

    The legend names the classes with their part of the picture, the largest first, as many as its
    height has room for; its letters grow with the picture. Pictures with both sides below 256
    pixels are enlarged by a whole factor.

    Args:
        picture: of any mode.
        labels: uint8 (height, width) of the picture's size; 255 for no class.
        classes: the names, by number.
        palette: the colors, by number.

    Raises:
        ValueError: the sizes differ.
    """
    if picture.size != labels.shape[::-1]:
        raise ValueError(f"the picture is {picture.size}, but its labels {labels.shape[::-1]}")
    table = np.full((256, 3), UNNAMED, dtype=np.uint8)
    table[: len(palette)] = palette
    colored = Image.blend(picture.convert("RGB"), Image.fromarray(table[labels]), OPACITY)
    areas = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    present = [int(c) for c in np.argsort(-areas, kind="stable") if areas[c]]
    names = {IGNORED: "(ignored)", **dict(enumerate(classes))}
    lines = [
        (tuple(table[c].tolist()), f"{names[c]}  {_percent(areas[c] / labels.size)}")
        for c in present
    ]
    factor = -(-LEAST_SIDE // max(picture.size))
    colored = colored.resize((factor * picture.width, factor * picture.height), NEAREST)
    scale = max(1.0, math.sqrt(colored.width * colored.height) / USUAL_SIDE)
    height = max(colored.height, round(scale * (3 * LINE + 2 * MARGIN)))
    legend = _legend(lines, height, scale, Lettering(names.values()))
    sheet = Image.new("RGB", (colored.width + legend.width, height), "white")
    sheet.paste(colored, (0, 0))
    sheet.paste(legend, (colored.width, 0))
    return sheet


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else "< 1 %"


def _legend(
    lines: list[tuple[Color, str]], height: int, scale: float, lettering: Lettering
) -> Image.Image:
    line, margin, swatch, size = (round(scale * side) for side in (LINE, MARGIN, SWATCH, FONT))
    room = (height - 2 * margin) // line
    if len(lines) > room:
        lines = [*lines[: room - 1], ((255, 255, 255), f"and {len(lines) - room + 1} more")]
    fitted = [(color, *lettering.fit(text, size)) for color, text in lines]
    width = max(int(font.getlength(text)) for _, text, font in fitted) + swatch + 3 * margin
    legend = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(legend)
    for number, (color, text, font) in enumerate(fitted):
        middle = margin + number * line + line // 2
        box = (margin, middle - swatch // 2, margin + swatch, middle + swatch // 2)
        draw.rectangle(box, fill=color)
        draw.text((2 * margin + swatch, middle), text, fill="black", font=font, anchor="lm")
    return legend


def write_labels(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write a label file such as `ImageLabelFolder` reads: 8-bit grayscale PNG of class numbers.

    Args:
        path: of the PNG.
        labels: uint8 (height, width); 255 for no class.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as stream:
        Image.fromarray(labels).save(stream, format="png")
