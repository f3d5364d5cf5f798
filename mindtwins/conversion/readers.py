"""A PyTorch checkpoint as named tensors, whatever they are wrapped in and whatever lies beside."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtwins.checkpoint import METADATA_KEY
from mindtwins.conversion import torch_files
from mindtwins.conversion.torch_files import TensorRecord
from mindtwins.errors import UserError
from mindtwins.files import read_file
from mindtwins.formats import MINDSPORE, SAFETENSORS, SHARD_INDEX, identify
from mindtwins.tensor_files import FormatError, parse_safetensors, read_ckpt

# mmcv's moving average keeps `a.b.weight` beside it as `ema_a_b_weight`.
AVERAGE_PREFIX = "ema_"

# A norm of a block in this project's names.
_OUR_NAME = re.compile(r"(backbone\.)?blocks\.\d+\.\d+\.norm1\.gamma")

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class Source:
    """What a checkpoint file holds.

    Attributes:
        path: where it was read from.
        sha256: of the file's bytes; of an index, of it and its shards one after the other.
        tensors: every tensor in it, by where it lies: keys and indices with dots between them.
        states: what may be a state dict, by where it lies ("" is the file itself): the names in it
            to keys of `tensors`.
        classes: the names of the classes that OpenMMLab's projects keep beside it; empty if not.
        recipe: the text of the configuration that they keep beside it; empty if not.
        shards: the files that an index led to.
        foreign: classes and functions that the file asks for and did not get: none of them ran.
    """

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray | TensorRecord]
    states: dict[str, dict[str, str]]
    classes: tuple[str, ...] = ()
    recipe: str = ""
    shards: tuple[Path, ...] = ()
    foreign: tuple[str, ...] = ()

    def array(self, place: str) -> np.ndarray:
        """The values of one of `tensors`.

        Raises:
            UserError: a sparse, quantized or otherwise foreign tensor, or damaged.
        """
        tensor = self.tensors[place]
        try:
            return tensor if isinstance(tensor, np.ndarray) else torch_files.as_array(place, tensor)
        except FormatError as error:
            raise UserError(f"cannot read {self.path}: {error}") from error


def read_source(path: str | Path) -> Source:
    """Read a file of torch.save, a .safetensors file, or an index with all its shards.

    Which it is, its content says. None of its code runs.

    Raises:
        UserError: missing, a directory, empty, damaged, another format, or without tensors.
    """
    path = Path(path)
    data = read_file(path)
    try:
        with ThreadPoolExecutor(1) as executor:
            hashing = executor.submit(hashlib.sha256, data)
            content, foreign = _parse(path, data)
            digest = hashing.result()
        shards: tuple[Path, ...] = ()
        if isinstance(content, _Shards):
            shards = tuple(path.parent / file for file in sorted(set(content.values())))
            content = _join(path, content, digest)
        tensors: dict[str, np.ndarray | TensorRecord] = {}
        states: dict[str, dict[str, str]] = {}
        for state, name, tensor in _walk(content):
            place = f"{state}.{name}" if state else name
            while place in tensors:  # a dot in a key, where another dictionary is
                place += "'"
            tensors[place] = tensor
            states.setdefault(state, {})[name] = place
    except FormatError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path}: its parts hold one another without end") from error
    if not tensors:
        raise UserError(f"cannot read {path}: it holds no tensors of PyTorch's")
    states |= _averages(states)
    return Source(
        path,
        digest.hexdigest(),
        tensors,
        states,
        _class_names(content),
        _recipe(content),
        shards,
        tuple(foreign),
    )


class _Shards(dict):
    """What an index says: name of a tensor to the file that it lies in."""


def _parse(path: Path, data: bytes) -> tuple[object, list[str]]:
    """The content of a file (of an index, what it says), and what it asked for and did not get."""
    form = identify(io.BytesIO(data))
    if form is SHARD_INDEX:
        return _parse_index(data), []
    if form is MINDSPORE:
        return _read_mindspore(path), []
    # Alone it lacks tensors, which no reader of an error about these would think of.
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard[3]) > 1:
        raise FormatError(
            f"it is one of {int(shard[3])} shards: give their index,"
            f" {shard[1]}{shard[4]}.index.json, which reads all of them"
        )
    return _parse_weights(data)


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    """The tensors of another project's .ckpt; one of this project's has nothing to be converted."""
    arrays, texts = read_ckpt(path)
    is_ours = METADATA_KEY in texts or any(map(_OUR_NAME.fullmatch, arrays))
    if is_ours:
        raise FormatError(f"it is {MINDSPORE}")
    return arrays


def _parse_weights(data: bytes) -> tuple[object, list[str]]:
    if identify(io.BytesIO(data)) is SAFETENSORS:
        return parse_safetensors(data)[0], []
    return torch_files.load(io.BytesIO(data))


def _parse_index(data: bytes) -> _Shards:
    try:
        shards = _Shards(json.loads(data)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("it is an index of shards without a sound weight_map") from error
    if not all(isinstance(file, str) and Path(file).name == file for file in shards.values()):
        raise FormatError("it is an index of shards whose weight_map names no plain files")
    return shards


def _join(path: Path, shards: _Shards, digest: hashlib._Hash) -> dict[str, object]:
    """The tensors of all shards in the order of the index; their bytes go into the digest."""
    files = sorted(set(shards.values()))
    if missing := [file for file in files if not (path.parent / file).is_file()]:
        raise FormatError(f"it needs {', '.join(missing)} beside it")
    found: dict[tuple[str, str], object] = {}
    for file in files:
        data = read_file(path.parent / file)
        digest.update(data)
        try:
            tensors, _ = _parse_weights(data)
        except FormatError as error:
            raise FormatError(f"of its shard {file}: {error}") from error
        if isinstance(tensors, Mapping):
            found |= {(file, name): tensor for name, tensor in tensors.items()}
    if missing := [name for name, file in shards.items() if (file, name) not in found]:
        raise FormatError(f"its shard {shards[missing[0]]} lacks {missing[0]}")
    return {name: found[file, name] for name, file in shards.items()}


def _walk(content: object) -> Iterator[tuple[str, str, np.ndarray | TensorRecord]]:
    """Where the dictionary or list lies that holds a tensor, the tensor's name there, and it."""
    waiting = [("", "", content)]
    seen = set()  # what a file refers to twice, or to itself
    while waiting:
        state, name, value = waiting.pop()
        if isinstance(value, np.ndarray) or torch_files.is_tensor(value):
            yield state, name or "tensor", value
            continue
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        place = f"{state}.{name}" if state and name else name or state
        if weights := dict(_weights_of_module("", value)):
            inner = [(place, key, weights[key]) for key in weights]
        else:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [
                (place, str(key) if isinstance(key, str | int) else str(number), item)
                for number, (key, item) in enumerate(items)
            ]
        waiting += reversed(inner)


def _weights_of_module(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    """The state dict of a model that was pickled whole, by what torch's modules consist of."""
    if not isinstance(value, Mapping) or not {"_parameters", "_modules"} <= value.keys():
        return
    for part in ("_parameters", "_buffers", "_modules"):
        inner = value.get(part)
        for name, item in inner.items() if isinstance(inner, Mapping) else ():
            if torch_files.is_tensor(item):
                yield f"{prefix}{name}", item
            elif part == "_modules":
                yield from _weights_of_module(f"{prefix}{name}.", item)


def _class_names(content: object) -> tuple[str, ...]:
    """As OpenMMLab's projects keep them: CLASSES in versions 0.x, dataset_meta in 1.x."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    described = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    for place in (described, meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()


def _recipe(content: object) -> str:
    """As OpenMMLab's projects keep it: `config` in mmcv's files, `cfg` in MMEngine's."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    for key in ("config", "cfg"):
        text = meta.get(key) if isinstance(meta, Mapping) else None
        if isinstance(text, str):
            return text
    return ""


def _averages(states: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """State dicts of mmcv's averages, which lie among the weights, each beside its own."""
    found = {}
    for state, names in states.items():
        twins = {name: f"{AVERAGE_PREFIX}{name.replace('.', '_')}" for name in names}
        # What is not averaged (running statistics) is the same in both.
        average = {name: names.get(twins[name], place) for name, place in names.items()}
        if average != dict(names):
            taken = {twin for twin in twins.values() if twin in names}
            key = f"{state}.{AVERAGE_PREFIX}" if state else AVERAGE_PREFIX
            found[key] = {n: place for n, place in average.items() if n not in taken}
            found[state] = {n: place for n, place in names.items() if n not in taken}
    return found
