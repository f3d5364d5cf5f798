"""Reading a configuration: from YAML files and from flags, checked against the options.

Later wins: defaults, the files that `base:` names in their order, the YAML file, flags. An unknown
key or a value of the wrong type is an error wherever it stands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mindtwins.cli import Parser, nearest
from mindtwins.config.options import STARTING_POINT, Config, Section, TrainConfig, show
from mindtwins.config.recipes import BUNDLED, find_recipe
from mindtwins.console import tell
from mindtwins.errors import UserError

AnyConfig = TypeVar("AnyConfig", bound=Config)

# What `Config.stated` says of options that were given as flags.
COMMAND_LINE = "command line"


def parse_config(cls: type[AnyConfig], argv: Sequence[str], description: str) -> AnyConfig:
    """Read the configuration of a script from its arguments.

    Only `mindtwins train` takes over `STARTING_POINT`; for the others those options keep their
    defaults. So does `pretrained` of a recipe, which says what a training starts with, but not as a
    flag.

    Args:
        cls: TrainConfig, ValidateConfig, InferConfig or ServeConfig.
        argv: arguments without the program's name.
        description: first lines of `--help`.

    Raises:
        UserError: names the file (or the command line), the key and what is wrong.
    """
    given = vars(_parser(cls, description).parse(argv))
    name = given.pop("config", None)
    path = find_recipe(name, Path()) if name is not None else None
    values = read_yaml(cls, path) if path else {}
    stated = dict.fromkeys(values, str(path)) | dict.fromkeys(given, COMMAND_LINE)
    for name, value in given.items():
        values[name] = _convert(cls, name, value, f"command line: --{name}")
    if not values.get("output_dir"):
        values["output_dir"] = f"outputs/{path.stem if path else 'run'}"
    if not issubclass(cls, TrainConfig):
        start = {*STARTING_POINT, *({"pretrained"} - given.keys())}
        values = {name: value for name, value in values.items() if name not in start}
    _shorten_default_warmup(cls, values)
    _prefer_float32_on_cpu(cls, values, given)
    return cls(**values, stated=stated)


def _shorten_default_warmup(cls: type[Config], values: dict[str, Any]) -> None:
    """Fit a warmup that nobody asked for into a short training."""
    default: Any = _options(cls)["warmup_epochs"].default
    epochs = values.get("epoch_size", default + 1)
    if "warmup_epochs" not in values and epochs <= default:
        values["warmup_epochs"] = epochs // 2
        tell(
            f"warmup_epochs is {epochs // 2}, half of epoch_size, instead of its default of "
            f"{default}"
        )


def _prefer_float32_on_cpu(
    cls: type[Config], values: dict[str, Any], flags: Mapping[str, Any]
) -> None:
    """Let a recipe for accelerators run on a CPU, where fp16 is slower than float32."""
    device = values.get("device_target", _options(cls)["device_target"].default)
    level = values.get("amp_level", "O0")
    if device == "CPU" and level != "O0" and "amp_level" not in flags:
        values["amp_level"] = "O0"
        tell(
            f"on CPU in float32 (amp_level O0), which is faster there than the recipe's {level}; "
            f"--amp_level {level} asks for that"
        )


def read_yaml(cls: type[Config], path: Path) -> dict[str, Any]:
    """The checked values that a YAML file and the files it is based on state."""
    options = _options(cls)
    values = {}
    for file, stated in _lineage(path).values():
        for name, value in stated.items():
            if name not in options:
                raise UserError(f"{file}: unknown key {nearest(str(name), [*options, 'base'])}")
            values[name] = _convert(cls, name, value, f"{file}: {name}")
    return values


def _lineage(path: Path, derived: tuple[Path, ...] = ()) -> dict[Path, tuple[Path, dict[str, Any]]]:
    """A YAML file with all that it is based on, bases first: the files, and what each states.

    A file that is the base of several comes once, before the first of them, so that none of them
    takes its values back. `derived` are the files that are based on this one.
    """
    identity = path.resolve()
    if identity in derived:
        raise UserError(f"{path}: is based on itself")
    stated = _load(path)
    base = stated.pop("base", None) or []
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"{path}: base must be a file or a list of files, not {base!r}")
    files: dict[Path, tuple[Path, dict[str, Any]]] = {}
    for name in bases:
        # Keeps the place of those that are known.
        files |= _lineage(find_recipe(name, path.parent), (*derived, identity))
    return files | {identity: (path, stated)}


def _load(path: Path) -> dict[str, Any]:
    """What a YAML file states, unchecked."""
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if stated is None:  # an empty file
        return {}
    if not isinstance(stated, dict):
        raise UserError(f"{path}: must be lines of `key: value`, not a {type(stated).__name__}")
    return stated


def as_dict(config: Config) -> dict[str, Any]:
    """The recipe as plain JSON values, as checkpoints store it (flags of one script left out)."""
    return {name: _plain(getattr(config, name)) for name in _options(Config)}


def config_diff(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """What two recipes (from `as_dict`) state differently, as {key: (old, new)}.

    Returns:
        The differences that change what is learned, and those that do not.
    """
    options = _options(Config)
    # A recipe of an earlier version lacks the options that came since.
    old = {name: _formerly(item) for name, item in options.items()} | dict(old)
    differing = {
        name: (old[name], new.get(name)) for name in {**old, **new} if old[name] != new.get(name)
    }
    free = {
        n: v for n, v in differing.items() if n in options and options[n].metadata["resume_safe"]
    }
    return {n: v for n, v in differing.items() if n not in free}, free


def as_begun(config: AnyConfig, recipe: Mapping[str, Any]) -> AnyConfig:
    """The configuration with what a run that it continues keeps; `recipe` is that run's."""
    kept = {
        name: recipe.get(name, item.metadata["formerly"])
        for name, item in _options(Config).items()
        if item.metadata["formerly"] is not None and config.stated.get(name) != COMMAND_LINE
    }
    return replace(config, **kept)


def sections(cls: type[Config]) -> list[type[Section]]:
    """The section classes that make up a configuration, in the order of the help."""
    return [base for base in reversed(cls.__mro__) if Section in base.__bases__]


def _options(cls: type[Config]) -> dict[str, Field]:
    return {item.name: item for item in fields(cls) if "doc" in item.metadata}


def _formerly(item: Field) -> Any:
    """What a recipe did that does not know an option."""
    formerly = item.metadata["formerly"]
    return _plain(item.default if formerly is None else formerly)


def _parser(cls: type[Config], description: str) -> Parser:
    parser = Parser(
        description=description,
        usage="%(prog)s [-h] [-c YAML] [--key value ...]",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe = f"recipe: a file, or the name of one in {BUNDLED}".replace("%", "%%")
    parser.add_argument("-c", "--config", metavar="YAML", help=recipe)
    types = get_type_hints(cls)
    for section in sections(cls):
        group = parser.add_argument_group(section.__doc__)
        for name in (item.name for item in fields(section)):
            item = _options(cls)[name]  # which may have another default than the section's
            bare = True if types[item.name] is bool else item.metadata["bare"]
            words: dict[str, Any] = {} if bare is None else {"nargs": "?", "const": bare}
            if item.metadata["path"] and types[item.name] is not str:
                words = {"nargs": "+"}
            group.add_argument(
                f"--{item.name}",
                metavar=_type_name(types[item.name]).upper(),
                help=_help(item),
                **words,
            )
    return parser


def _help(item: Field) -> str:
    choices = item.metadata["choices"]
    among = f" ({', '.join(choices)})" if choices and choices[0] not in item.metadata["doc"] else ""
    assert item.default is not MISSING
    return f"{item.metadata['doc']}{among} [{show(item.default)}]".replace("%", "%%")


def _convert(cls: type[Config], name: str, value: Any, where: str) -> Any:
    """A value from YAML or the command line as the option's type, checked."""
    wanted = get_type_hints(cls)[name]
    meta = _options(cls)[name].metadata
    if meta["path"] and wanted is not str and isinstance(value, str):
        value = [value]  # a comma belongs to a name
    try:
        value = _cast(wanted, value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} must be {_described(wanted)}, not {value!r}") from None
    if meta["path"]:
        value = _expanded(value)
    allowed = (*meta["choices"], _options(cls)[name].default)
    for item in value if isinstance(value, tuple) else (value,):
        if meta["choices"] and item not in allowed:
            raise UserError(f"{where} must be one of {', '.join(meta['choices'])}, not {item!r}")
    for bound, holds, words in (
        ("at_least", lambda limit: value >= limit, "at least"),
        ("at_most", lambda limit: value <= limit, "at most"),
        ("above", lambda limit: value > limit, "above"),
    ):
        if meta[bound] is not None and not holds(meta[bound]):
            raise UserError(f"{where} must be {words} {meta[bound]:g}, not {value}")
    return value


def _cast(wanted: Any, value: Any) -> Any:
    if get_origin(wanted) is tuple:
        items = [word for word in value.split(",") if word] if isinstance(value, str) else value
        kind, *others = get_args(wanted)
        if others != [...] and len(items) != 1 + len(others):
            raise ValueError(value)
        return tuple(_cast(kind, item) for item in items)
    if wanted is bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise ValueError(value)
        return value
    if isinstance(value, bool):  # a bool is an int to Python, but not to a recipe
        raise ValueError(value)
    if wanted is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value
    if wanted is int and isinstance(value, float):  # 0.5 would become 0
        raise ValueError(value)
    if not isinstance(value, int | float | str):
        raise ValueError(value)
    number = wanted(value)  # YAML 1.1 reads 1e-3 as text: numbers may arrive as text
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(value)
    return number


def _type_name(wanted: Any) -> str:
    if get_origin(wanted) is tuple:
        kind, *others = get_args(wanted)
        words = "words" if kind is str else "numbers"
        return words if others == [...] else f"{1 + len(others)} {words}"
    return {int: "integer", float: "number", str: "text", bool: "true|false"}[wanted]


def _described(wanted: Any) -> str:
    """A type in a sentence."""
    if get_origin(wanted) is tuple:
        return _type_name(wanted)
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}[wanted]


def _expanded(path: Any) -> Any:
    """A path, or each of several, with the user's own folder in the place of `~`."""
    if isinstance(path, tuple):
        return tuple(map(_expanded, path))
    return os.path.expanduser(path)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
