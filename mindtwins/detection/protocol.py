"""The test protocol that a configuration of MMDetection states, as options of recipes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindtwins.conversion.openmmlab import TestRecipe, are_numbers
from mindtwins.detection.transforms import MULTIPLE

# What the published configurations say, by where it stands in a model's `test_cfg`; the same under
# the names of earlier versions.
_HEAD = {
    "score_thr": 0.05,
    "nms.type": "nms",
    "nms.iou_threshold": 0.5,
    "nms.iou_thr": 0.5,
    "max_per_img": 100,
}
_PROPOSALS = {
    "nms_pre": 1000,
    "nms_post": 1000,
    "nms_across_levels": False,
    "nms.type": "nms",
    "nms.iou_threshold": 0.7,
    "nms.iou_thr": 0.7,
    "nms_thr": 0.7,
    "max_per_img": 1000,
    "max_num": 1000,
    "min_bbox_size": 0,
}
_PUBLISHED = {
    **_HEAD,
    "nms_pre": 1000,
    "min_bbox_size": 0,
    **{f"rcnn.{key}": value for key, value in _HEAD.items()},
    "rcnn.mask_thr_binary": 0.5,
    **{f"rpn.{key}": value for key, value in _PROPOSALS.items()},
}


def as_tested(recipe: TestRecipe) -> tuple[dict[str, Any], list[str]]:
    """The options that it states, and what of it has no counterpart here, a clause each."""
    options = dict(recipe.preprocessing)
    unlike = list(recipe.unlike)
    resize, views = recipe.step("Resize"), recipe.step("MultiScaleFlipAug")
    scale = views.get("img_scale") or resize.get("scale") or resize.get("img_scale")
    if isinstance(scale, list) and len(scale) == 1:
        (scale,) = scale
    if are_numbers(scale) and len(scale) == 2:
        options["resize_scale"] = sorted(scale, reverse=True)
    elif scale:
        unlike.append(f"pictures are resized to {scale}")
    # A step with a scale of its own, as versions 3.x have it, keeps the aspect only if it is told.
    if resize.get("keep_ratio", "scale" not in resize) is not True:
        unlike.append("pictures are resized without keeping their aspect")
    if views.get("flip"):
        unlike.append("pictures are seen mirrored too")
    preprocessor = dict(_flat(recipe.model.get("data_preprocessor")))
    multiple = recipe.step("Pad").get("size_divisor", preprocessor.get("pad_size_divisor"))
    if multiple not in (None, MULTIPLE):
        unlike.append(f"pictures are padded to multiples of {multiple} pixels, not of {MULTIPLE}")
    stated = dict(_flat(recipe.model.get("test_cfg")))
    unlike += [
        f"test_cfg has {key} {stated[key]}, not {value}"
        for key, value in _PUBLISHED.items()
        if stated.get(key, value) != value
    ]
    if recipe.model.get("data_preprocessor"):
        unlike.append("boxes are chosen as in MMDetection 3.x (create_detector's postprocessing)")
    return options, unlike


def _flat(value: object, prefix: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by their keys with dots between them."""
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return [pair for part in parts for pair in part]
