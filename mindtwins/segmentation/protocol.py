"""The test protocol that a configuration of MMSegmentation states, as options of recipes here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from mindtwins.conversion.openmmlab import TestRecipe, are_numbers


def as_tested(recipe: TestRecipe) -> tuple[dict[str, Any], list[str]]:
    """The options that it states, and what of it has no counterpart here, a clause each.

    Of versions 0.x (`MultiScaleFlipAug`) and 1.x (`Resize`).
    """
    options = dict(recipe.preprocessing)
    unlike = list(recipe.unlike)
    _take_scale(recipe, options, unlike)
    _take_windows(recipe, options, unlike)
    head = recipe.model.get("decode_head")
    if isinstance(head, Mapping) and head.get("align_corners"):
        unlike.append("its decode_head resizes with align_corners")
    return options, unlike


def _take_scale(recipe: TestRecipe, options: dict[str, Any], unlike: list[str]) -> None:
    views = recipe.step("MultiScaleFlipAug")
    resize = recipe.step("Resize")
    scale = views.get("img_scale") or resize.get("scale") or resize.get("img_scale")
    if isinstance(scale, list) and len(scale) == 1:
        (scale,) = scale
    if _is_pair(scale):
        options["resize_scale"] = sorted(scale, reverse=True)
    elif recipe.steps:
        unlike.append(f"pictures are resized to {scale}" if scale else "pictures keep their size")
    for step in recipe.steps:
        kind = str(step.get("type"))
        if "Resize" in kind and kind != "Resize":
            unlike.append(f"pictures go through {kind}")
    # A step with a scale of its own, as versions 1.x have it, keeps the aspect only if it is told.
    if resize.get("keep_ratio", "scale" not in resize) is not True:
        unlike.append("pictures are resized without keeping their aspect")
    ratios = views.get("img_ratios")
    ratios = ratios if isinstance(ratios, list) else [ratios]
    if are_numbers(ratios) and min(ratios) > 0:
        options["test_ratios"] = [float(ratio) for ratio in ratios]
    elif ratios != [None]:
        unlike.append(f"pictures are seen at the ratios {ratios}")
    if "flip" in views:
        options["test_flip"] = bool(views["flip"])


def _take_windows(recipe: TestRecipe, options: dict[str, Any], unlike: list[str]) -> None:
    test = recipe.model.get("test_cfg")
    if not isinstance(test, Mapping) or "mode" not in test:
        return
    if test["mode"] not in ("whole", "slide"):
        unlike.append(f"test_cfg has the mode {test['mode']}")
        return
    options["test_mode"] = test["mode"]
    if test["mode"] != "slide":
        return
    crop, stride = _side(test.get("crop_size")), _side(test.get("stride"))
    if crop and stride and stride <= crop:
        options |= {"test_crop": crop, "test_stride": stride}
    else:
        unlike.append(
            f"windows have the crop_size {test.get('crop_size')} and the stride"
            f" {test.get('stride')}"
        )


def _side(size: object) -> int | None:
    """Of a square."""
    return size[0] if _is_pair(size) and size[0] == size[1] else None


def _is_pair(value: object) -> TypeGuard[list[int]]:
    return (
        are_numbers(value) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)
    )
