"""Pictures side by side, each with a line above it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from mindtwins.data.decode import read_thumbnail
from mindtwins.data.fonts import Lettering
from mindtwins.files import atomic_write

# In pixels: the side of a picture's square, the line in it, and the margin around both.
CELL, LINE, FONT, MARGIN = 300, 24, 13, 6
PICTURES_PER_ROW = 4
# All cells together; more pictures become smaller ones.
MOST_PIXELS = 50_000_000


def draw_sheet(
    path: str | os.PathLike,
    captioned: Sequence[tuple[str, str]],
    exif_orientation: bool = False,
) -> None:
    """Draw a sheet of image files, each under its caption, as PNG.

    Args:
        captioned: files and captions.
        exif_orientation: turn pictures upright.

    Raises:
        UserError: an image cannot be read, or the sheet not be written.
    """
    columns = min(len(captioned), max(PICTURES_PER_ROW, math.isqrt(len(captioned) - 1) + 1))
    rows = -(-len(captioned) // columns)
    cell = min(CELL, math.isqrt(MOST_PIXELS // (rows * columns)))
    room = max(cell - 2 * MARGIN, 1), max(cell - LINE - MARGIN, 1)
    lettering = Lettering(caption for _, caption in captioned)
    sheet = Image.new("RGB", (columns * cell, rows * cell), "white")
    draw = ImageDraw.Draw(sheet)
    bar = tqdm(captioned, desc="sheet", unit="image", leave=False, disable=None)
    for number, (file, caption) in enumerate(bar):
        row, column = divmod(number, columns)
        left, top = column * cell, row * cell
        # Small pictures are enlarged, and keep their pixels.
        picture = read_thumbnail(file, room, exif_orientation)
        picture = ImageOps.contain(picture, room, Image.Resampling.NEAREST)
        sheet.paste(picture, (left + (cell - picture.width) // 2, top + LINE))
        text, font = lettering.fit(caption, FONT, room[0])
        draw.text((left + cell // 2, top + LINE // 2), text, "black", font, anchor="mm")
    with atomic_write(path) as stream:
        sheet.save(stream, format="png")
