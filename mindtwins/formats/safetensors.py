"""The `.safetensors` format, written and read with NumPy alone.

A file is the length of its header (eight bytes, little-endian), the header (JSON: name to dtype,
shape and byte range, and texts under `__metadata__`) and the tensors' bytes. The safetensors
package would write the header's texts in an order that changes from run to run, and its NumPy
reader knows no bfloat16; both are needed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from mindtwins.formats import BFLOAT16, FormatError, raw_bytes, require, view_as_array
from mindtwins.formats.sealing import (
    DAMAGED,
    DIGEST_KEY,
    DIGEST_LENGTH,
    METADATA_KEY,
    HashingWriter,
)

# The format's names of the element types.
TYPE_NAMES = {
    "BF16": BFLOAT16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
}
_NAME_OF_TYPE = {np.dtype(dtype): name for name, dtype in TYPE_NAMES.items()}

_LENGTH_BYTES = 8
_NO_DIGEST = "0" * DIGEST_LENGTH

_FOREIGN = "it is no .safetensors file, was cut short, or is damaged"


def write(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: str | None) -> None:
    """Write the tensors in their order; with metadata also the seal, without it for torch's users.

    Raises:
        FormatError: a tensor's dtype has no name in the format.
    """
    if metadata is None:
        texts = {"format": "pt"}
    else:
        texts = {METADATA_KEY: metadata, DIGEST_KEY: _NO_DIGEST}
    header = _header(tensors, texts)
    with HashingWriter(file) as sealed:
        sealed.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
        sealed.write(header)
        for array in tensors.values():
            sealed.write(raw_bytes(array))
    if metadata is not None:
        # The digest stands in the header, so it is taken over a header with zeros in its place.
        file.seek(_LENGTH_BYTES + _digest_position(header, _NO_DIGEST))
        file.write(sealed.hexdigest().encode())


def _header(tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    table, end = {"__metadata__": texts}, 0
    for name, array in tensors.items():
        require(array.dtype in _NAME_OF_TYPE, f".safetensors cannot hold {name} ({array.dtype})")
        start, end = end, end + array.nbytes
        table[name] = {
            "dtype": _NAME_OF_TYPE[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(table, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)  # the tensors start at a multiple of eight


def read(data: bytes) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors (read-only views of `data`) and the metadata of a file.

    The metadata is None for a file that the project did not write.

    Raises:
        FormatError: the bytes are no .safetensors file, or the seal is broken.
    """
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    require(_LENGTH_BYTES < start <= len(data), _FOREIGN)
    header = _parse(data[_LENGTH_BYTES:start])
    texts = header.pop("__metadata__", {})
    require(isinstance(texts, dict), _FOREIGN)
    content = memoryview(data)[start:]
    tensors = {name: _tensor(name, entry, content) for name, entry in header.items()}
    _check_no_gaps(header, len(content))
    if {METADATA_KEY, DIGEST_KEY} & texts.keys():
        _check_seal(data, start, texts.get(DIGEST_KEY))
    return tensors, texts.get(METADATA_KEY)


def _tensor(name: str, entry: object, content: memoryview) -> np.ndarray:
    """The tensor that a header entry describes."""
    form = f"its header does not describe {name} as a tensor"
    require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}, form)
    shape, offsets = entry["shape"], entry["data_offsets"]
    require(isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2, form)
    require(all(type(number) is int and number >= 0 for number in shape + offsets), form)
    dtype = entry["dtype"]
    require(isinstance(dtype, str) and dtype in TYPE_NAMES, f"{name} has the unknown type {dtype}")
    start, end = offsets
    return view_as_array(name, content[start:end], np.dtype(TYPE_NAMES[dtype]), tuple(shape))


def _check_no_gaps(header: dict, size: int) -> None:
    """Every byte of the `size` after the header belongs to one tensor, and to only one."""
    position = 0
    for start, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        require(start == position, "its tensors overlap or leave gaps")
        position = end
    require(position == size, "it was cut short, or holds bytes that belong to no tensor")


def _check_seal(data: bytes, start: int, digest: str | None) -> None:
    """Compare the digest in the header data[8:start] with that of all the other bytes."""
    header = data[_LENGTH_BYTES:start]
    require(isinstance(digest, str) and len(digest) == DIGEST_LENGTH, DAMAGED)
    position = _digest_position(header, digest)
    require(position >= 0, DAMAGED)
    found = hashlib.sha256(data[:_LENGTH_BYTES])
    found.update(header[:position] + _NO_DIGEST.encode() + header[position + DIGEST_LENGTH :])
    found.update(memoryview(data)[start:])
    require(found.hexdigest() == digest, DAMAGED)


def _digest_position(header: bytes, digest: str) -> int:
    entry = f'"{DIGEST_KEY}":"{digest}"'.encode()
    position = header.find(entry)
    return position if position < 0 else position + len(entry) - DIGEST_LENGTH - 1


def _parse(header: bytes) -> dict:
    try:
        table = json.loads(header, object_pairs_hook=_table_without_repeats)
    except (ValueError, RecursionError) as error:
        raise FormatError(_FOREIGN) from error
    require(isinstance(table, dict), _FOREIGN)
    return table


def _table_without_repeats(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    require(len(table) == len(pairs), "its header names something twice")
    return table
