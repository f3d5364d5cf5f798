"""Named arrays in `.ckpt` and `.safetensors` files, through the libraries of the formats.

`mindspore` writes and reads `.ckpt`, the `safetensors` package `.safetensors`. What is added here
is NumPy on both sides, one error for whatever a damaged file makes the libraries raise, and no
array that a format would lose or change on the way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
import safetensors
import safetensors.numpy
from mindspore import Tensor

from mindtwins.errors import UserError
from mindtwins.files import check_readable, read_file

# NumPy has no bfloat16. An array of this dtype holds its bits, the upper half of a float32's.
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

# Names of the element types in .safetensors.
_DTYPES = {
    "BF16": BFLOAT16,
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
# What both formats give back as it was. MindSpore would write others, complex64 for one, and then
# not read them.
_WRITABLE = frozenset(_DTYPES.values()) - {BFLOAT16}


class FormatError(Exception):
    """A file is not sound, or cannot hold something; the message is the reason, without a path."""


def write_ckpt(path: Path, records: Mapping[str, np.ndarray | str]) -> None:
    """Write arrays and texts in their order; the same records give the same bytes.

    Raises:
        FormatError: an array that the format cannot hold.
        OSError: it cannot be written.
    """
    values = {}
    for name, value in records.items():
        if isinstance(value, str):
            values[name] = value
        else:
            # MindSpore would leave it out without a word.
            _require(value.size > 0, f"a .ckpt cannot hold {name}, which is empty")
            values[name] = Tensor.from_numpy(_checked(name, value))
    with _mindspore_silenced():
        # Of all that save_checkpoint takes, only this keeps texts and tensors in one order.
        ms.save_checkpoint([], str(path), append_dict=values)


def read_ckpt(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the texts in a `.ckpt`, in its order.

    Raises:
        UserError: the file is missing, a directory, empty or unreadable, or larger than the free
            memory.
        FormatError: it is no checkpoint.
    """
    check_readable(path)
    arrays, texts = {}, {}
    try:
        with _mindspore_silenced():
            for name, value in ms.load_checkpoint(str(path), crc_check=True).items():
                if isinstance(value, str):
                    texts[name] = value
                else:
                    arrays[name] = value.asnumpy()
    # A damaged file surfaces as whatever MindSpore meets first, mostly wrapped in a ValueError; but
    # so does what says nothing of the file.
    except Exception as error:
        _raise_what_is_no_damage(path, error)
        raise FormatError(_unsound("MindSpore .ckpt")) from error
    for name, array in arrays.items():
        if array.dtype.name == "bfloat16":  # a NumPy dtype of MindSpore's own
            arrays[name] = array.view(BFLOAT16)
    return arrays, texts


def _raise_what_is_no_damage(path: Path, error: BaseException) -> None:
    """Raise what ended the reading of a file, if it was not the file's content."""
    # MindSpore refuses a file that is larger than the memory that is free at the moment.
    if "available memory" in str(error):
        raise UserError(f"cannot load {path}: it does not fit into the free memory") from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise UserError(f"cannot load {path}: the memory is full") from error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise UserError(f"cannot read {path}: {cause.strerror}") from error
        if not isinstance(cause, Exception):  # an interrupt
            raise cause
        cause = cause.__cause__ or cause.__context__


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays; the same arguments give the same bytes if `metadata` has one entry.

    Raises:
        FormatError: an array that the format cannot hold.
        OSError: it cannot be written.
    """
    checked = {name: _checked(name, array) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(checked, path, dict(metadata))
    except safetensors.SafetensorError as error:
        # The library's words for the system's, whose number is at their end.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, ordered by name, and the metadata in a `.safetensors` file.

    Raises:
        UserError: the file is missing, a directory, empty or unreadable.
        FormatError: it is no .safetensors file.
    """
    return parse_safetensors(read_file(path))


def parse_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As `read_safetensors`, of a file's bytes.

    Raises:
        FormatError: they are not of a .safetensors file.
    """
    arrays = {}
    try:
        entries = safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        # From the bytes: safe_open's NumPy arrays lack bfloat16 unless some package adds it.
        for name, entry in sorted(entries):
            _require(entry["dtype"] in _DTYPES, f"{name} in it has the type {entry['dtype']}")
            flat = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]])
            arrays[name] = flat.reshape(entry["shape"])
    # ValueError: dimensions beyond NumPy's, beside a 0.
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(_unsound(".safetensors file")) from error
    return arrays, header.get("__metadata__", {})


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    """The array with its elements in order, which both libraries take for granted."""
    _require(array.dtype in _WRITABLE, f"a checkpoint cannot hold {name} ({array.dtype})")
    return np.asarray(array, order="C")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise FormatError(reason)


def _unsound(format_name: str) -> str:
    return f"it is no {format_name}, was cut short, or is damaged"


@contextlib.contextmanager
def _mindspore_silenced() -> Iterator[None]:
    """Keep MindSpore's logs out of what our one-line errors already say."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
