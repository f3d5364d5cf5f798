"""Pictures side by side, each with a line above it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from mindtwins.data.decode import read_picture
from mindtwins.files import atomic_write

PICTURES_PER_ROW = 4


def draw_sheet(path: str | os.PathLike, captioned: Sequence[tuple[str, str]]) -> None:
    """Draw a sheet of image files, each under its caption, as PNG.

    Raises:
        UserError: an image cannot be read, or the sheet not be written.
    """
    columns = min(PICTURES_PER_ROW, len(captioned))
    rows = -(-len(captioned) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (file, caption) in zip(axes.flat, captioned, strict=False):
        axis.imshow(read_picture(file))
        axis.set_title(caption, fontsize=9, parse_math=False)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=100)
