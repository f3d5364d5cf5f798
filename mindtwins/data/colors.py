"""Colors of classes in pictures."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Colors that are easy to tell apart: hues in steps of the golden ratio, in three shades."""
    shades = ((0.85, 1.0), (0.55, 0.95), (0.9, 0.65))
    colors: list[Color] = []
    for number in range(count):
        hue = number * 0.618034 % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, *shades[number % len(shades)])
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)
