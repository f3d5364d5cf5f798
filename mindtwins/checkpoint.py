"""The project's checkpoints: named arrays and metadata in one sealed `.ckpt` or `.safetensors`.

A checkpoint says where it came from (its metadata), is written whole or not at all, has the same
bytes for the same input, and is refused when a single bit of it has changed
(`mindtwins.formats.sealing` says how). `mindspore.load_checkpoint` reads it like any other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mindtwins.errors import UserError
from mindtwins.files import atomic_write, read_file
from mindtwins.formats import FormatError, ckpt, safetensors

if TYPE_CHECKING:
    from mindspore import nn

FORMATS: dict[str, ModuleType] = {".ckpt": ckpt, ".safetensors": safetensors}

# How many names an error message lists before it only counts.
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: parameter name to read-only array, in the file's order.
        metadata: what `save_checkpoint` was given; None for a file of somebody else's.
        path: where it was read from, for messages.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict | None
    path: Path


def check_suffix(path: str | os.PathLike) -> None:
    """Raise a UserError unless the path's suffix names a checkpoint format."""
    if Path(path).suffix not in FORMATS:
        raise UserError(f"{path}: a checkpoint's name has to end in {' or '.join(FORMATS)}")


def save_checkpoint(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping
) -> None:
    """Write a checkpoint whole or not at all; the same arguments give the same bytes.

    Args:
        path: ends in `.ckpt` or `.safetensors`, which picks the format.
        tensors: name to array, written in this order.
        metadata: anything that JSON can hold.

    Raises:
        UserError: an unknown suffix, an array dtype that the format lacks, or a place that cannot
            be written.
    """
    check_suffix(path)
    text = json.dumps(metadata, sort_keys=True)
    try:
        with atomic_write(path) as file:
            FORMATS[Path(path).suffix].write(file, tensors, text)
    except FormatError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint and check its seal.

    Raises:
        UserError: the file is missing, a directory, empty, of another format, cut or damaged.
    """
    check_suffix(path)
    path = Path(path)
    data = read_file(path)
    try:
        tensors, text = FORMATS[path.suffix].read(data)
    except FormatError as error:
        raise UserError(f"cannot load {path}: {error}") from error
    if not tensors:
        raise UserError(f"cannot load {path}: it holds no tensors")
    return Checkpoint(tensors, None if text is None else json.loads(text), path)


def expect_metadata(checkpoint: Checkpoint, **expected: object) -> None:
    """Raise a UserError that names each entry of the metadata that is not as expected.

    Entries that the checkpoint does not state pass: a file of somebody else's has none.
    """
    stated = checkpoint.metadata or {}
    differing = [
        f"{key} {stated[key]} (asked for: {value})"
        for key, value in expected.items()
        if key in stated and stated[key] != value
    ]
    if differing:
        raise UserError(f"{checkpoint.path} is a checkpoint of {', '.join(differing)}")


def load_into(cell: nn.Cell, checkpoint: Checkpoint, allow_unused: Iterable[str] = ()) -> None:
    """Set every parameter of `cell` from the checkpoint's tensor of the same name.

    Strict both ways: each parameter needs its tensor with the same shape and dtype, and each
    tensor its parameter, except those whose names start with a prefix in `allow_unused`. Nothing
    is set unless everything fits.

    Raises:
        UserError: something does not fit; the message names it.
    """
    from mindspore import Tensor

    tensors = checkpoint.tensors
    parameters = {parameter.name: parameter for parameter in cell.get_parameters()}
    wanted = {
        name: (tuple(parameter.shape), np.dtype(ckpt.TYPE_NAMES[str(parameter.dtype)]))
        for name, parameter in parameters.items()
    }
    problems = list_names("lacks", [name for name in wanted if name not in tensors])
    problems += list_names(
        "has no use for",
        [
            name
            for name in tensors
            if name not in wanted and not name.startswith(tuple(allow_unused))
        ],
    )
    problems += list_names(
        "has another shape or dtype than the model for",
        [
            f"{name} {_describe(tensors[name].shape, tensors[name].dtype)}"
            f" instead of {_describe(*wanted[name])}"
            for name in wanted
            if name in tensors and wanted[name] != (tensors[name].shape, tensors[name].dtype)
        ],
    )
    if problems:
        raise UserError(f"{checkpoint.path} does not fit the model: it {'; it '.join(problems)}")
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(tensors[name]))


def list_names(verb: str, names: list[str]) -> list[str]:
    """A list of one phrase, "<verb> a, b, c, d and 3 more", or of none if there are no names."""
    if not names:
        return []
    more = len(names) - _NAMES_SHOWN
    rest = f" and {more} more" if more > 0 else ""
    return [f"{verb} {', '.join(names[:_NAMES_SHOWN])}{rest}"]


def _describe(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
