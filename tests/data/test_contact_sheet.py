"""Sheets of pictures, and the fonts of their captions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from mindtwins.data import contact_sheet, fonts
from mindtwins.data.contact_sheet import draw_sheet
from mindtwins.data.fonts import DEFAULT_FONT, Lettering
from mindtwins.errors import UserError


def make_font(path: Path, characters: str) -> Path:
    """A font whose characters are all black squares."""
    pen = TTGlyphPen(None)
    for number, point in enumerate(((0, 0), (0, 800), (800, 800), (800, 0))):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in characters})
    builder.setupGlyf({name: pen.glyph() for name in names})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make fonts of these characters the only ones of the system, beside the default."""
    fonts.choose_fonts.cache_clear()

    def install(*of_fonts: str) -> list[str]:
        paths = [str(make_font(tmp_path / f"{i}.ttf", c)) for i, c in enumerate(of_fonts)]
        listed = [SimpleNamespace(fname=path, name=path) for path in [DEFAULT_FONT, *paths]]
        monkeypatch.setattr(fontManager, "ttflist", listed)
        return paths

    yield install
    fonts.choose_fonts.cache_clear()


def test_a_font_of_the_system_is_found(install: Callable, told: Callable) -> None:
    _, chinese, mixed = install("狸", "海狸 ", "海鸦 ")
    lettering = Lettering(["beaver", "海狸", "鸦"])
    for text, path in (("beaver", DEFAULT_FONT), ("海狸", chinese), ("鸦", mixed)):
        drawn, font = lettering.fit(text, 13)
        assert (drawn, font.path, font.size) == (text, path, 13)
    assert told() == []


def test_characters_that_no_font_has(install: Callable, told: Callable) -> None:
    install("海")
    lettering = Lettering(["狸, 海 and é", "🎉", "🎉狸"])
    assert lettering.fit("🎉狸", 13)[0] == "[U+1F389 U+72F8]"
    assert lettering.fit("é and 🎉", 13)[0] == "é and [U+1F389]"
    (notice,) = told()
    assert notice.startswith("notice: no font of this system has the characters 狸 🎉: they are")
    Lettering(["🎉狸"])
    assert len(told()) == 1


def test_many_characters_that_no_font_has_are_told_once(install: Callable, told: Callable) -> None:
    install("海")
    characters = [chr(0x4E00 + 8 * i) for i in range(64)]
    Lettering(characters)
    Lettering(characters[::-1])
    assert len(told()) == 1


def test_unusable_fonts_are_passed_over(install: Callable, tmp_path: Path, told: Callable) -> None:
    paths = install("海")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    for name, path in (("Last Resort High-Efficiency", paths[0]), ("b", tmp_path / "broken.ttf")):
        fontManager.ttflist = [SimpleNamespace(fname=str(path), name=name)]
        fonts.choose_fonts.cache_clear()
        assert Lettering(["海"]).fit("海", 13)[0] == "[U+6D77]"


def test_one_line_of_a_width() -> None:
    lettering = Lettering(["a\tb\n c", "a long name"])
    assert lettering.fit("a\tb\n c", 13)[0] == "a b  c"
    text, font = lettering.fit("a long name of a class", 13, 60)
    assert text.startswith("a lo") and text.endswith("...") and font.getlength(text) <= 60


def test_sheet(tmp_path: Path, photographs: list[Image.Image]) -> None:
    files = []
    for number, color in enumerate(("red", "lime", "blue", "yellow", "cyan")):
        Image.new("RGB", (40, 20), color).save(tmp_path / f"{number}.png")
        files.append((str(tmp_path / f"{number}.png"), f"class {number}"))
    draw_sheet(tmp_path / "sheet.png", files)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (600, 1200, 3)
    centers = [tuple(pixels[24 + 72, 150 + 300 * column].tolist()) for column in range(4)]
    assert centers == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    assert tuple(pixels[300 + 24 + 72, 150]) == (0, 255, 255)
    assert (pixels[300:, 300:] == 255).all()
    for column in range(4):  # the captions
        assert (pixels[4:20, 300 * column : 300 * (column + 1)].min(axis=(0, 2)) < 100).any()


def test_names_of_any_script_draw_without_a_warning(tmp_path: Path, told: Callable) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_sheet(tmp_path / "sheet.png", [(str(tmp_path / "x.png"), "海狸 ꙮ $\\frac{$")])
    assert (tmp_path / "sheet.png").exists()


def test_many_pictures_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MOST_PIXELS", 30 * 40 * 40)
    Image.new("RGB", (400, 400), "red").save(tmp_path / "x.png")
    draw_sheet(tmp_path / "sheet.png", [(str(tmp_path / "x.png"), "red")] * 27)
    assert Image.open(tmp_path / "sheet.png").size == (6 * 40, 5 * 40)


def test_photographs_are_not_decoded_whole(
    tmp_path: Path, photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jpg"
    photographs[0].resize((3000, 2000)).save(path)
    decoded = []
    convert = Image.Image.convert
    monkeypatch.setattr(
        Image.Image, "convert", lambda image, *a: decoded.append(image.size) or convert(image, *a)
    )
    draw_sheet(tmp_path / "sheet.png", [(str(path), "large")])
    assert decoded == [(750, 500)]


def test_pictures_may_be_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 20), "blue").save(tmp_path / "x.png", exif=exif)
    for turned in (False, True):
        draw_sheet(tmp_path / "sheet.png", [(str(tmp_path / "x.png"), "")], turned)
        blue = (np.asarray(Image.open(tmp_path / "sheet.png")) == (0, 0, 255)).all(axis=2)
        height, width = np.ptp(np.argwhere(blue), axis=0)
        assert (height > width) == turned


def test_a_picture_that_went_bad(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*x\.png"):
        draw_sheet(tmp_path / "sheet.png", [(str(tmp_path / "x.png"), "")])
    assert not (tmp_path / "sheet.png").exists()
