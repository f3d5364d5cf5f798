"""Weights by the name of a file, a folder or a repository, converted where they are PyTorch's.

A conversion is kept, sealed, in a folder of its own (MINDTWINS_CACHE names another) by the hash of
what it was made from, so it is made once; where the folder cannot be written it is made each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindtwins import __version__
from mindtwins.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    is_project_file,
    load_checkpoint,
    save_checkpoint,
)
from mindtwins.console import tell
from mindtwins.conversion.converter import CONVERTER_VERSION, from_torch
from mindtwins.conversion.kinds import Kinds, identified
from mindtwins.conversion.readers import Source, read_source
from mindtwins.errors import UserError
from mindtwins.files import check_readable
from mindtwins.hub.fetching import (
    PUBLISHED,
    WEIGHTS,
    Repository,
    check_announced,
    check_pinned,
    fetch,
    fetch_unchecked,
    parse_repository,
)
from mindtwins.models.variants import ALIASES, VARIANTS, resolve_name

CACHE_VARIABLE = "MINDTWINS_CACHE"
CONFIG = "config.json"

# Where a repository keeps its weights, the first that is there.
_WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin")
# No repository is called so.
_FILE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".json", ".tar")
_TIMM_CROP = 0.9


def _are_three(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_square(value: object) -> bool:
    return _are_three(value) and value[1] == value[2] > 0  # type: ignore[index]


# What timm says of preprocessing: our option for it, which values are done here, and ours of it.
_TIMM_OPTIONS: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    "mean": ("mean", _are_three, list),
    "std": ("std", lambda value: _are_three(value) and min(value) > 0, list),
    "crop_pct": ("crop_pct", lambda value: _is_number(value) and 0 < value <= 1, float),
    "input_size": ("image_size", _is_square, lambda value: int(value[-1])),
    "crop_mode": ("", lambda value: value == "center", str),
}
_TIMM_LABELS = ("label_names", "labels")

# Of a kept conversion's metadata: what has to be told whenever it is used.
_TOLD = "told"


def published_repository(model: str) -> str:
    """The repository of the weights that the authors published for a model.

    Raises:
        UserError: there are none.
    """
    name = resolve_name(model)
    if name not in PUBLISHED:
        raise UserError(
            f"nobody has published weights of {name}: there are those of {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


def load_pretrained(kinds: Kinds, source: str | os.PathLike) -> Checkpoint:
    """The weights that a name stands for, with all that their source says of their use.

    Args:
        kinds: the kinds of models that they may be of, by task.
        source: a file (a checkpoint of this project or any PyTorch file that can be converted), a
            folder as `save_pretrained` or timm writes it, or a repository "owner/name" of such,
            also "owner/name@revision". What exists on the disk comes before the hub.

    Raises:
        UserError: it cannot be had, is damaged, or holds no model of these kinds.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(kinds, path)
    repository = parse_repository(os.fspath(source))
    if path.exists() or repository is None or path.suffix in _FILE_SUFFIXES:
        check_readable(path)
        return _load_file(kinds, path)
    return _load_repository(kinds, repository)


def cache_folder() -> Path:
    """Where conversions are kept."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mindtwins"


def _load_file(kinds: Kinds, path: Path) -> Checkpoint:
    if not is_project_file(path):
        return _converted(kinds, read_source(path))
    checkpoint = load_checkpoint(path)
    try:
        return identified(kinds, checkpoint)
    except UserError:
        if checkpoint.metadata is not None:
            raise
    return _converted(kinds, read_source(path))  # a .ckpt of another project's


def _load_folder(kinds: Kinds, folder: Path) -> Checkpoint:
    config = folder / CONFIG
    stated = _read_config(config, str(folder)) if config.is_file() else {}
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            if is_project_file(path):
                return _sealed(kinds, path, str(folder))
            return _described(kinds, read_source(path), stated, str(folder))
    raise UserError(f"{folder} holds neither {' nor '.join(_WEIGHT_FILES)}")


def _load_repository(kinds: Kinds, repository: Repository) -> Checkpoint:
    if repository.is_published:
        return _load_published(kinds, repository)
    config = fetch(repository, CONFIG)
    stated = _read_config(config, str(repository)) if config is not None else {}
    for name in _WEIGHT_FILES:
        path = fetch_unchecked(repository, name)
        if path is not None:
            if is_project_file(path):
                check_announced(repository, path)
                return _sealed(kinds, path, str(repository))
            return _described(kinds, _read_fetched(repository, path), stated, str(repository))
    raise UserError(f"{repository} holds neither {' nor '.join(_WEIGHT_FILES)}")


def _load_published(kinds: Kinds, repository: Repository) -> Checkpoint:
    """The authors' weights, in their preprocessing and not in timm's."""
    path = fetch_unchecked(repository, WEIGHTS)
    if path is None:
        raise UserError(f"{repository} holds no {WEIGHTS} there: ask another mirror (HF_ENDPOINT)")
    source = _read_fetched(repository, path)
    if not check_pinned(repository, path, source.sha256):
        tell(
            f"the sum of {repository} is not known here: its {WEIGHTS} (sha256 {source.sha256}) is"
            " what the hub announced, and that is all that could be checked"
        )
    checkpoint = _named(_converted(kinds, source, classes_known=True), str(repository))
    crop = checkpoint.stated["preprocessing"]["crop_pct"]
    tell(
        f"{repository}: preprocessing of the authors, crop_pct {crop:g}, by which they publish"
        f" their accuracies (timm's config.json has {_TIMM_CROP:g})"
    )
    return checkpoint


def _read_fetched(repository: Repository, path: Path) -> Source:
    """A PyTorch file of a repository: the sum of the bytes that are read is the one that counts."""
    try:
        source = read_source(path)
    except Exception:  # of whatever kind: libraries parse it
        check_announced(repository, path)  # what the hub announced cannot be read, or it is damage
        raise
    check_announced(repository, path, None if source.shards else source.sha256)
    return source


def _read_config(path: Path, name: str) -> dict:
    """What a config.json says, this project's or timm's.

    Raises:
        UserError: it is damaged, or of another model than a Twins.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot read {CONFIG} of {name}: {error}") from error
    if not isinstance(stated, dict):
        raise UserError(f"cannot read {CONFIG} of {name}: it holds no object")
    architecture = stated.get("architecture")
    if architecture is not None and architecture not in (*VARIANTS, *ALIASES):
        raise UserError(f"{name} holds a {architecture}, which is no Twins model")
    return stated


def _sealed(kinds: Kinds, path: Path, name: str) -> Checkpoint:
    """A model of this project's format, which says by itself how it is used."""
    return replace(identified(kinds, load_checkpoint(path)), path=Path(name))


def _described(kinds: Kinds, source: Source, config: Mapping, name: str) -> Checkpoint:
    """A model of timm's format, with what its config.json says of it."""
    has_names = any(config.get(key) for key in _TIMM_LABELS)
    checkpoint = _named(_converted(kinds, source, has_names), name)
    return replace(checkpoint, metadata=checkpoint.stated | _use(checkpoint, config, name))


def _use(checkpoint: Checkpoint, config: Mapping, name: str) -> dict:
    """What timm's config.json says of preprocessing and classes, as a checkpoint records it.

    Raises:
        UserError: it says what is not done here, or in another form than timm's.
    """
    # Before timm 0.9 all of it stood beside each other.
    described = config.get("pretrained_cfg") or config
    preprocessing = dict(checkpoint.stated["preprocessing"])
    for key, (option, fits, take) in _TIMM_OPTIONS.items():
        value = described.get(key)
        if value is None:
            continue
        if not fits(value):
            raise UserError(f"{CONFIG} of {name} says {key} {value}, which is not done here")
        if option:
            preprocessing[option] = take(value)
    kind = described.get("interpolation", preprocessing["interpolation"])
    if kind != preprocessing["interpolation"]:
        tell(
            f"{name} was made for pictures resized by {kind} interpolation; here it is"
            f" {preprocessing['interpolation']}"
        )
    use: dict = {"preprocessing": preprocessing}
    lists = [place.get(key) for place in (config, described) for key in _TIMM_LABELS]
    if names := next(filter(None, lists), None):
        if not isinstance(names, list):
            raise UserError(f"{CONFIG} of {name} names its classes in no list")
        classes = checkpoint.stated["num_classes"]
        if len(names) != classes:
            raise UserError(
                f"{CONFIG} of {name} names {len(names)} classes, its model has {classes}"
            )
        use["classes"] = [str(label) for label in names]
    return use


def _named(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The same as from the place that the user knows it by."""
    source = checkpoint.stated["source"] | {"repository": name}
    return replace(checkpoint, path=Path(name), metadata=checkpoint.stated | {"source": source})


def _converted(kinds: Kinds, source: Source, classes_known: bool = False) -> Checkpoint:
    """A PyTorch file's model, from the folder of conversions or made now; what it assumes is told.

    Args:
        classes_known: somebody else says what the classes are called.
    """
    kept = cache_folder() / f"{source.sha256}-{__version__}-{CONVERTER_VERSION}.safetensors"
    checkpoint = _read_kept(kept)
    if checkpoint is None:
        conversion = from_torch(source, kinds)
        told = {_TOLD: [conversion.assumptions, conversion.taken_classes]}
        checkpoint = Checkpoint(conversion.tensors, conversion.metadata | told, kept)
        _keep(checkpoint)
    metadata = dict(checkpoint.stated)
    assumptions, taken_classes = metadata.pop(_TOLD)
    # The same bytes may have been read under another name.
    called = metadata["source"]["file"]
    metadata["source"] = metadata["source"] | {"file": source.path.name}
    for sentence in (*assumptions, "" if classes_known else taken_classes):
        if sentence:
            tell(sentence.replace(called, source.path.name))
    return replace(checkpoint, metadata=metadata, path=source.path)


def _read_kept(path: Path) -> Checkpoint | None:
    """A conversion that was kept; None if there is none of use."""
    try:
        return load_checkpoint(path) if path.is_file() else None
    except DamagedCheckpoint:
        tell(f"{path} was damaged: it is made anew")
    except (UserError, OSError):  # somebody else's, or gone this moment
        pass
    return None


def _keep(checkpoint: Checkpoint) -> None:
    """Write a conversion to its place, if that can be."""
    try:
        checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(checkpoint.path, checkpoint.tensors, checkpoint.stated)
    except (UserError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        tell(
            f"the converted weights are not kept ({reason}): they will be converted again each"
            f" time; {CACHE_VARIABLE} names another folder for them"
        )
