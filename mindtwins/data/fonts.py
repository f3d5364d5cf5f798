"""Names of classes in any script, drawn with the fonts that the system has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from mindtwins.data.notices import tell_once

# It comes with matplotlib, whose list of the system's fonts takes a moment: only where needed.
DEFAULT_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


class Lettering:
    """Draws a set of texts: each in one font, that which has most of its characters.

    Characters that no font of the system has are told once, and written as U+ and their number.

    Args:
        texts: all that will be drawn.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        characters = frozenset(c for text in texts for c in text if not c.isspace())
        self._fonts = choose_fonts(characters)
        # In order: equal sets need not list their members alike, and the list is what is told of.
        missing = sorted(characters.difference(*self._fonts.values()))
        if missing:
            shown = " ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
            tell_once(
                ("characters", *missing),
                f"no font of this system has the characters {shown}: they are drawn as U+ and "
                "their number; install a font that has them, such as Noto's",
            )

    def fit(
        self, text: str, size: int, width: float | None = None
    ) -> tuple[str, ImageFont.FreeTypeFont]:
        """The text as it can be drawn, in one line and cut to a width, and its font."""
        text = "".join(" " if c.isspace() else c for c in text)
        path = min(self._fonts, key=lambda path: len(set(text) - self._fonts[path]))
        known = self._fonts[path] | {" "}
        text = "".join(c if c in known else f"[U+{ord(c):04X}]" for c in text).replace("][", " ")
        font = ImageFont.truetype(path, size)
        if width is not None and font.getlength(text) > width:
            while text and font.getlength(f"{text}...") > width:
                text = text[:-1]
            text += "..."
        return text, font


@lru_cache(maxsize=8)
def choose_fonts(characters: frozenset[str]) -> dict[str, frozenset[str]]:
    """Fonts that together have the characters, the default first, by path with what they have."""
    chosen = {DEFAULT_FONT: _drawable(DEFAULT_FONT)}
    missing = characters - chosen[DEFAULT_FONT]
    if not missing:
        return chosen
    from matplotlib.font_manager import fontManager

    # A font of placeholders has every character, so to speak.
    paths = {font.fname for font in fontManager.ttflist if "Last Resort" not in font.name}
    having = {path: _drawable(path, missing) for path in sorted(paths)}
    while useful := [path for path in having if having[path] & missing]:
        best = max(useful, key=lambda path: len(having[path] & missing))
        missing -= having[best]
        chosen[best] = _drawable(best)
    return chosen


def _drawable(path: str, among: frozenset[str] | None = None) -> frozenset[str]:
    """The characters of a font; none if it cannot be used, as fonts of bitmaps cannot."""
    try:
        ImageFont.truetype(path, 16)
        font = FT2Font(path)
        if among is not None:  # the whole table of a large font takes long
            return frozenset(c for c in among if font.get_char_index(ord(c)))
        return frozenset(map(chr, font.get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
