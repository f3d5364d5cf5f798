"""A small annotation file in COCO's format."""

from __future__ import annotations

from typing import Any

# (width, height) of the pictures; the last has a side below 32 pixels.
SIZES = [(60, 45), (48, 64), (60, 45), (70, 50), (64, 30)]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 1, "name": "fish"}]


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> dict:
    """An annotation whose one polygon is its box."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [polygon],
        **more,
    }


def content() -> dict[str, Any]:
    """An annotation file: three pictures with objects, one with a crowd alone, one too small."""
    images = [
        {"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(SIZES)
    ]
    crowd = {"size": [50, 70], "counts": [100, 200, 3200]}
    return {
        "images": images,
        "categories": [dict(category) for category in CATEGORIES],
        "annotations": [
            annotation(5, 10, 3, [10, 5, 20.5, 30]),
            annotation(6, 10, 7, [0, 0, 12, 9.25]),
            annotation(0, 11, 1, [4, 4, 30, 50]),
            annotation(8, 13, 3, [2, 0, 4, 50], iscrowd=1, segmentation=crowd, area=200),
            annotation(9, 14, 3, [1, 1, 20, 20]),
        ],
    }
