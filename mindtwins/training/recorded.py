"""What a checkpoint says of its own use, taken over into a recipe: a checkpoint is enough.

What a YAML file or a flag states wins over what the checkpoint records, and is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from mindtwins.checkpoint import Checkpoint
from mindtwins.config import Config, TrainConfig
from mindtwins.config.options import show
from mindtwins.console import tell

AnyConfig = TypeVar("AnyConfig", bound=Config)


def states(config: Config, name: str) -> bool:
    """Whether a recipe says what an option shall be, rather than leaving it to its default."""
    return name in config.stated or getattr(config, name) != _default(name)


def as_trained(
    config: AnyConfig,
    checkpoint: Checkpoint | None,
    preprocessing: Sequence[str],
    data: Sequence[str],
) -> AnyConfig:
    """The recipe with what a checkpoint records of its model, its preprocessing and its data.

    Args:
        checkpoint: None for weights that start anew.
        preprocessing: the options that say how pictures become the model's input.
        data: the options that say in which form the labels are.
    """
    if checkpoint is None:
        return config
    metadata = checkpoint.stated
    values: dict[str, Any] = {}
    if not states(config, "model") and "variant" in metadata:
        values["model"] = metadata["variant"]
    # What is trained has the classes of its data.
    if not isinstance(config, TrainConfig) and not states(config, "num_classes"):
        values["num_classes"] = metadata.get("num_classes") or config.num_classes
    # A training's own checkpoints hold the recipe whole.
    recipe = metadata.get("recipe", {})
    recorded = {**recipe, **(metadata.get("preprocessing") or {})}
    values |= _taken_over(config, recorded, preprocessing, told=True)
    values |= _taken_over(config, metadata.get("data") or recipe, data, told=False)
    dialect = metadata.get("dialect", {})
    for name in ("window_padding", "patch_rounding"):
        asked = getattr(config, name)
        if asked and asked != dialect.get(name, asked):
            tell(f"{name} {asked} instead of the checkpoint's {dialect[name]}")
    unknown = [name for name in preprocessing if not states(config, name)]
    if unknown and not recorded:  # else what is not there came later, and its default is as before
        assumed = ", ".join(f"{name} {show(getattr(config, name))}" for name in unknown)
        tell(
            f"{checkpoint.path} does not say how its pictures are prepared: taking {assumed} "
            "(state them with its recipe or by flags where they differ)"
        )
    return replace(config, **values)


def _taken_over(
    config: Config, recorded: dict[str, Any], names: Sequence[str], told: bool
) -> dict[str, Any]:
    """The recorded values of options that the recipe leaves open."""
    values = {}
    for name in names:
        if name not in recorded:
            continue
        value = recorded[name]
        value = tuple(value) if isinstance(value, list) else value
        asked = getattr(config, name)
        if not states(config, name):
            values[name] = value
        elif asked != value and told:
            tell(f"{name} {show(asked)} instead of the checkpoint's {show(value)}")
    return values


def describe_use(
    classes: Sequence[str] | None,
    interpolation: str,
    preprocessing: dict[str, Any],
    data: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint's metadata says of its use, which `as_trained` reads.

    Args:
        classes: the names of the model's classes, by number; None where they are not known.
        interpolation: of the preprocessing, which no option says.
        preprocessing, data: options as `record` or `defaults` give them.
    """
    return {
        "classes": None if classes is None else list(classes),
        "preprocessing": {"interpolation": interpolation, **preprocessing},
        "data": data,
    }


def record(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """The values of options as a checkpoint records them."""
    return {name: _plain(getattr(config, name)) for name in names}


def defaults(names: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint records where options have their defaults."""
    return {name: _plain(_default(name)) for name in names}


def _default(name: str) -> Any:
    return next(item.default for item in fields(Config) if item.name == name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
