"""The configuration that OpenMMLab's projects keep beside their weights, as plain values.

mmcv writes it to `meta.config`, MMEngine to `meta.cfg`: Python text, of which nothing runs here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class TestRecipe:
    """How a configuration tests.

    Attributes:
        model: its `model`, with the `test_cfg` that old versions have beside it.
        steps: what happens to a test picture, in order.
        preprocessing: options as recipes here have them: mean and std, where they are stated.
        unlike: what of it no option here says, a clause each.
    """

    __test__ = False  # not a class of tests

    model: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    preprocessing: dict[str, Any]
    unlike: list[str]

    def step(self, *types: str) -> Mapping[str, Any]:
        """The first step of one of these types; empty if there is none."""
        return next((step for step in self.steps if step.get("type") in types), {})


def read_test_recipe(text: str) -> TestRecipe:
    """Read the text of a configuration; what it does not say is empty."""
    config = _parse(text)
    model = {"test_cfg": config.get("test_cfg"), **_mapping(config.get("model"))}
    steps = tuple(_steps(_test_pipeline(config)))
    recipe = TestRecipe(model, steps, {}, [])
    preprocessor = _mapping(model.get("data_preprocessor") or config.get("data_preprocessor"))
    normalized = recipe.step("Normalize") or preprocessor
    for name in ("mean", "std"):
        values = normalized.get(name)
        if are_numbers(values) and len(values) == 3 and (name == "mean" or min(values) > 0):
            recipe.preprocessing[name] = [round(value / 255, 6) for value in values]
        elif values is not None:
            recipe.unlike.append(f"pictures are normalized with {name} {values}")
    turned = (normalized.get("to_rgb"), normalized.get("bgr_to_rgb"))
    # A preprocessor leaves the channels as OpenCV reads them unless it is told, a step turns them.
    if False in turned or (normalized is preprocessor and normalized and True not in turned):
        recipe.unlike.append("the channels stay in the order blue, green, red")
    return recipe


def are_numbers(value: object) -> TypeGuard[list[float]]:
    """Whether a value of a configuration is a list or tuple of numbers, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        and all(abs(item) < 1e9 for item in value)
    )


def _test_pipeline(config: Mapping[str, Any]) -> object:
    """Where versions 0.x, 1.x and configurations by hand have it."""
    for path in (
        ("data", "test", "pipeline"),
        ("test_dataloader", "dataset", "pipeline"),
        ("test_pipeline",),
    ):
        found: Any = config
        for key in path:
            found = _mapping(found).get(key)
        if found:
            return found
    return ()


def _steps(pipeline: object) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline and those within them."""
    if isinstance(pipeline, list):
        for step in map(_mapping, pipeline):
            yield step
            yield from _steps(step.get("transforms"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _parse(text: str) -> dict[str, Any]:
    """The assignments of a Python text; empty if it is none."""
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names: dict[str, Any] = {}
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            names[line.targets[0].id] = _value(line.value, names)
    return names


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Literals, `dict(...)`, and names assigned before; None for anything else."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {word.arg: _value(word.value, names) for word in node.keywords}
        return None
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {k.value: _value(v, names) for k, v in pairs if isinstance(k, ast.Constant)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names) for item in node.elts]
    if isinstance(node, ast.Name):
        return names.get(node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
