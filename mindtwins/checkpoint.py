"""The project's checkpoints: named arrays and metadata in one sealed `.ckpt` or `.safetensors`.

A checkpoint says where it came from (its metadata), is written whole or not at all, has the same
bytes for the same input, and is refused when its content has changed by a single bit: MindSpore's
own loader lets a flipped bit pass in both formats, and a `.ckpt` cut between two records even with
its crc check. So a file holds a seal, the metadata as JSON and the SHA-256 of that and all tensors.
No single damage removes both without a trace: a file with a part of the seal and not all of it is
damaged, and only a file with nothing of it is somebody else's.

`mindspore.load_checkpoint` reads these files like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mindtwins.errors import UserError
from mindtwins.files import check_readable, replaced_file
from mindtwins.formats import MINDSPORE, SAFETENSORS, SHARD_INDEX, TORCH_LEGACY, TORCH_ZIP, identify
from mindtwins.tensor_files import (
    FormatError,
    read_ckpt,
    read_safetensors,
    write_ckpt,
    write_safetensors,
)

if TYPE_CHECKING:
    from mindspore import nn

SUFFIXES = (".ckpt", ".safetensors")

# Of the metadata of a model's weights, as its "format_version".
FORMAT_VERSION = 1

# Tensors that a training checkpoint holds beside the weights.
TRAINING_STATE = ("optimizer.", "loss_scale.", "ema.")

# The two parts of the seal. A .ckpt has one at its start and one at its end, where no cut reaches
# both. The safetensors package writes several texts in an order that changes from run to run, so
# there both are in one text under a third key.
METADATA_KEY = "mindtwins.metadata"
DIGEST_KEY = "mindtwins.sha256"
SEAL_KEY = "mindtwins.seal"

_DAMAGED = "its content does not match its checksum: the file is damaged or was cut short"

# What only PyTorch calls a parameter: the weights and statistics of norms.
_TORCH_NAME = re.compile(r"(norm\w*|bn)(\.\d+)?\.(weight|running_mean)$")

# How many names an error message lists before it only counts.
_NAMES_SHOWN = 4


class DamagedCheckpoint(UserError):
    """A file whose content is not that of a checkpoint, or not the one that was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        tensors: parameter name to read-only array; of a `.ckpt` in the file's order, of a
            `.safetensors` ordered by name.
        metadata: what `save_checkpoint` was given; None for a file of somebody else's.
        path: where it was read from, for messages.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict | None
    path: Path

    @property
    def stated(self) -> dict:
        """The metadata; empty for a file of somebody else's."""
        return self.metadata or {}

    def without(self, prefixes: tuple[str, ...]) -> Checkpoint:
        """The same without the tensors whose names begin so."""
        kept = {n: array for n, array in self.tensors.items() if not n.startswith(prefixes)}
        return replace(self, tensors=kept)


def check_suffix(path: str | os.PathLike) -> None:
    """Raise a UserError unless the path's suffix names a checkpoint format."""
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f"{path}: a checkpoint's name has to end in {' or '.join(SUFFIXES)}")


def save_checkpoint(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping
) -> None:
    """Write a checkpoint whole or not at all; the same arguments give the same bytes.

    Args:
        path: ends in `.ckpt` or `.safetensors`, which picks the format.
        tensors: name to array; a `.ckpt` keeps their order.
        metadata: anything that JSON can hold.

    Raises:
        UserError: an unknown suffix, an array that the format cannot hold, or a place that cannot
            be written.
    """
    check_suffix(path)
    try:
        with replaced_file(path) as temporary:
            write_checkpoint(temporary, tensors, metadata)
    except FormatError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping) -> None:
    """As `save_checkpoint`, in place: for a file that is not at its path yet.

    Raises:
        FormatError: an array that the format cannot hold.
        OSError: it cannot be written.
    """
    text = json.dumps(metadata, sort_keys=True)
    digest = _digest(text, tensors)
    if path.suffix == ".ckpt":
        write_ckpt(path, {METADATA_KEY: text, **tensors, DIGEST_KEY: digest})
    else:
        seal = json.dumps({METADATA_KEY: text, DIGEST_KEY: digest})
        write_safetensors(path, tensors, {SEAL_KEY: seal})


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint and check its seal.

    Raises:
        DamagedCheckpoint: the file is empty, of another format, cut or damaged.
        UserError: it is missing, a directory, or cannot be read.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        raise DamagedCheckpoint(f"{path} is empty")
    _check_format(path)
    check_suffix(path)
    try:
        if path.suffix == ".ckpt":
            tensors, seal = read_ckpt(path)
        else:
            tensors, texts = read_safetensors(path)
            seal = _unpack_seal(texts)
            if not seal and any(map(_TORCH_NAME.search, tensors)):
                raise UserError(_to_convert(path))
        metadata = _check_seal(tensors, seal)
    except FormatError as error:
        raise DamagedCheckpoint(f"cannot load {path}: {error}") from error
    if not tensors:
        raise DamagedCheckpoint(f"cannot load {path}: it holds no tensors")
    for array in tensors.values():
        array.flags.writeable = False
    return Checkpoint(tensors, metadata, path)


def is_project_file(path: Path) -> bool:
    """Whether a file can only be meant for `load_checkpoint`: a `.ckpt` of MindSpore, or sealed."""
    with path.open("rb") as file:
        form = identify(file)
        if form is not SAFETENSORS:
            return form is MINDSPORE
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))  # a damaged length may be anything
    return METADATA_KEY.encode() in header


def as_checkpoint(source: str | os.PathLike | Checkpoint | None) -> Checkpoint | None:
    """The checkpoint itself, or the one in a file; None for none."""
    if source is None or isinstance(source, Checkpoint):
        return source
    return load_checkpoint(source)


def _check_format(path: Path) -> None:
    """Raise a UserError that says what to do with a file of another format than its name says."""
    if not path.is_file():
        return
    check_readable(path)
    with path.open("rb") as file:
        form = identify(file)
    if form in (TORCH_ZIP, TORCH_LEGACY, SHARD_INDEX):
        raise UserError(_to_convert(path))
    named = {".ckpt": MINDSPORE, ".safetensors": SAFETENSORS}
    if form is not None and form in named.values():
        if path.suffix in named and named[path.suffix] is not form:
            suffix = next(suffix for suffix in named if named[suffix] is form)
            raise UserError(f"cannot load {path}: it is {form.name}: rename it to end in {suffix}")
    elif form is not None:
        raise UserError(f"cannot load {path}: it is {form.name}, not a checkpoint")


def _to_convert(path: Path) -> str:
    target = shlex.quote(f"{path.with_suffix('.ckpt').name}")
    if path.suffix == ".ckpt":
        target = shlex.quote(f"{path.stem}_converted.ckpt")
    return (
        f"{path} holds PyTorch's weights: convert it first, with mindtwins convert"
        f" --pt_path {shlex.quote(str(path))} --ckpt_path {target}"
    )


def _unpack_seal(texts: Mapping[str, str]) -> dict[str, str]:
    """The seal among the texts of a `.safetensors` file; empty if there is none."""
    # The seal names itself, so that a damaged key does not hide it.
    if SEAL_KEY not in texts and not any(METADATA_KEY in text for text in texts.values()):
        return {}
    try:
        return dict(json.loads(texts[SEAL_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(_DAMAGED) from error


def _check_seal(tensors: Mapping[str, np.ndarray], seal: Mapping[str, str]) -> dict | None:
    """The metadata in a seal that fits the tensors; None if there is no seal."""
    text, digest = seal.get(METADATA_KEY), seal.get(DIGEST_KEY)
    if text is None and digest is None:
        return None
    if text is None or digest != _digest(text, tensors):
        raise FormatError(_DAMAGED)
    return json.loads(text)


def _digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a text and, ordered by name, of each tensor's name, dtype, shape and elements."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"\n{json.dumps([name, str(array.dtype), array.shape])}\n".encode())
        digest.update(array.ravel().data)
    return digest.hexdigest()


def expect_metadata(checkpoint: Checkpoint, **expected: object) -> None:
    """Raise a UserError that names each entry of the metadata that is not as expected.

    Entries that the checkpoint does not state pass: a file of somebody else's has none.
    """
    stated = checkpoint.stated
    differing = [
        f"{key} {stated[key]} (asked for: {value})"
        for key, value in expected.items()
        if key in stated and stated[key] != value
    ]
    if differing:
        raise UserError(f"{checkpoint.path} is a checkpoint of {', '.join(differing)}")


def load_into(
    cell: nn.Cell,
    checkpoint: Checkpoint,
    allow_unused: Iterable[str] = (),
    allow_missing: Iterable[str] = (),
) -> None:
    """Set every parameter of `cell` from the checkpoint's tensor of the same name.

    Strict both ways: each parameter needs its tensor with the same shape and dtype, except those
    whose names start with a prefix in `allow_missing`, which keep their values; and each tensor
    its parameter, except those whose names start with a prefix in `allow_unused`. Nothing is set
    unless everything fits.

    Raises:
        UserError: something does not fit; the message names it.
    """
    from mindspore import Tensor

    tensors = checkpoint.tensors
    parameters = {
        parameter.name: parameter
        for parameter in cell.get_parameters()
        if parameter.name in tensors or not parameter.name.startswith(tuple(allow_missing))
    }
    wanted = {
        name: (tuple(parameter.shape), np.dtype(str(parameter.dtype).lower()))
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
