"""The test protocol that a configuration of MMDetection states, as options of recipes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindtwins.conversion.openmmlab import TestRecipe, are_numbers

# What the published configurations say, by where it stands in a model's `test_cfg`.
_HEAD = {"score_thr": 0.05, "nms.iou_threshold": 0.5, "max_per_img": 100}
_PUBLISHED = {
    **_HEAD,
    "nms_pre": 1000,
    **{f"rcnn.{key}": value for key, value in _HEAD.items()},
    "rcnn.mask_thr_binary": 0.5,
    "rpn.nms_pre": 1000,
    "rpn.nms.iou_threshold": 0.7,
    "rpn.max_per_img": 1000,
}


def as_tested(recipe: TestRecipe) -> tuple[dict[str, Any], list[str]]:
    """The options that it states, and what of it has no counterpart here, a clause each."""
    options = dict(recipe.preprocessing)
    unlike = list(recipe.unlike)
    resize = recipe.step("Resize")
    scale = recipe.step("MultiScaleFlipAug").get("img_scale") or resize.get("scale")
    if are_numbers(scale) and len(scale) == 2:
        options["resize_scale"] = sorted(scale, reverse=True)
    elif scale:
        unlike.append(f"pictures are resized to {scale}")
    if recipe.step("MultiScaleFlipAug").get("flip"):
        unlike.append("pictures are seen mirrored too")
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
