from __future__ import annotations

import json

import numpy as np
from PIL import Image

from mindtwins.data.colors import Color, distinct_colors
from mindtwins.detection.detections import Detections
from mindtwins.detection.overlay import as_labels, draw_detections

NAMES = ("cat", "dog")
COLORS: tuple[Color, ...] = ((255, 0, 0), (0, 0, 255))


def two(masks: bool = True) -> Detections:
    """A cat and a dog in a picture of 400 x 300, which overlap, and a second cat."""
    bitmaps = np.zeros((3, 300, 400), bool)
    bitmaps[0, 60:160, 50:150] = True
    bitmaps[1, 120:250, 100:300] = True
    bitmaps[2, 260:290, 350:390] = True
    return Detections(
        np.float32([[50, 60, 150, 160], [100, 120, 300, 250], [350, 260, 390, 290]]),
        np.float32([0.9, 0.75, 0.29]),
        np.array([0, 1, 0]),
        bitmaps if masks else None,
    )


def test_masks_boxes_and_labels() -> None:
    gray = np.full((300, 400), 100, np.uint8)
    pixels = np.asarray(draw_detections(Image.fromarray(gray), two(), NAMES, COLORS))
    assert pixels.shape == (300, 400, 3)
    cat, dog = [178, 50, 50], [50, 50, 178]
    assert pixels[100, 70].tolist() == cat
    assert pixels[240, 290].tolist() == dog
    # Where both are, the cat, which is more certain, lies over the dog.
    assert pixels[140, 115].tolist() == [152, 25, 89]
    assert pixels[200, 30].tolist() == [100, 100, 100]
    # The frame of two pixels, and above it the label with white letters.
    assert (pixels[159:161, 60:140] == COLORS[0]).all()
    assert pixels[150, 49].tolist() == [100, 100, 100]
    label = pixels[46:58, 50:90]
    assert (label == COLORS[0]).all(axis=2).mean() > 0.4
    assert (label > 240).all(axis=2).any()


def test_boxes_alone() -> None:
    picture = Image.new("RGB", (400, 300))
    drawn = draw_detections(picture, two(masks=False), NAMES, COLORS)
    pixels = np.asarray(drawn)
    assert pixels[100, 70].tolist() == [0, 0, 0]
    assert (pixels[265:285, 350] == COLORS[0]).all()
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64))
    assert not np.asarray(draw_detections(picture, nothing, NAMES, COLORS)).any()


def test_small_pictures_and_boxes_at_the_edge() -> None:
    """They are enlarged; labels stay within the picture."""
    edges = np.float32([[-3, -2, 20, 10], [60, 5, 63.9, 47.9], [10, 20, 10, 20]])
    found = Detections(edges, np.float32([0.9, 0.8, 0.7]), np.array([0, 1, 1]))
    drawn = draw_detections(Image.new("L", (64, 48)), found, ("a" * 200, "b"), COLORS)
    assert drawn.size == (256, 192)
    pixels = np.asarray(drawn)
    assert pixels[1, 250].tolist() == [255, 0, 0]  # the long label
    assert (pixels[:, 254:, 2] == 255).sum() > 100


def test_labels_grow_with_the_picture() -> None:
    def height_of_label(side: int) -> int:
        box = np.float32([[0.3 * side, 0.5 * side, 0.6 * side, 0.9 * side]])
        found = Detections(box, np.float32([1]), np.array([1]))
        drawn = draw_detections(Image.new("RGB", (side, side)), found, NAMES, COLORS)
        column = np.asarray(drawn)[: int(0.5 * side), int(0.3 * side) + 1]
        return int((column == COLORS[1]).all(axis=1).sum())

    assert height_of_label(640) == 16
    assert height_of_label(1920) == 48


def test_labels_as_json() -> None:
    found = as_labels(two(), NAMES)
    assert [one["name"] for one in found] == ["cat", "dog", "cat"]
    assert found[1]["bbox"] == [100, 120, 200, 130]
    assert found[1]["score"] == 0.75
    assert found[0]["segmentation"]["size"] == [300, 400]
    assert json.loads(json.dumps(found)) == found
    assert "segmentation" not in as_labels(two(masks=False), NAMES)[0]


def test_many_classes() -> None:
    """A color for each of COCO's, and names in other scripts."""
    names = [f"класс {number}" for number in range(80)]
    found = Detections(
        np.float32([[10, 40, 100, 100]] * 80), np.linspace(1, 0.4, 80), np.arange(80)
    )
    drawn = draw_detections(Image.new("RGB", (300, 300)), found, names, distinct_colors(80))
    assert (np.asarray(drawn)[99, 20:90] == distinct_colors(1)[0]).all()
