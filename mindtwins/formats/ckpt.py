"""MindSpore's `.ckpt`, written and read without MindSpore.

The format is one protobuf message (checkpoint.proto in MindSpore's sources):

    message Checkpoint  { repeated Value value = 1; }
    message Value       { required string tag = 1; optional TensorProto tensor = 2; }
    message TensorProto { repeated int64 dims = 1; required string tensor_type = 2;
                          required bytes tensor_content = 3; }

Concatenated messages are one message, so a file is a sequence of records. Writing them directly
gives the same bytes for the same input, no copy of a tensor, and room for the seal: the metadata
is the first record, the SHA-256 of everything before it is the last. `mindspore.load_checkpoint`
reads these files and shows the two records as strings.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby
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

# MindSpore's names of the element types.
TYPE_NAMES = {
    "BFloat16": BFLOAT16,
    "Float16": np.float16,
    "Float32": np.float32,
    "Float64": np.float64,
    "Int8": np.int8,
    "Int16": np.int16,
    "Int32": np.int32,
    "Int64": np.int64,
    "UInt8": np.uint8,
    "UInt16": np.uint16,
    "UInt32": np.uint32,
    "UInt64": np.uint64,
    "Bool": np.bool_,
}
_NAME_OF_TYPE = {np.dtype(dtype): name for name, dtype in TYPE_NAMES.items()}

# Text is stored as NumPy's "U" arrays are in memory: four bytes a character.
_TEXT_TYPE, _TEXT_ENCODING = "str", "utf-32-le"

# Wire types of protobuf.
_VARINT, _BYTES = 0, 2

_FOREIGN = "it is no MindSpore checkpoint, or damaged"
_CUT = "it ends in the middle of a record: it was cut short or is damaged"

# `save_checkpoint(crc_check=True)` appends this word and a ten-byte big-endian crc32.
_CRC_WORD, _CRC_LENGTH = b"crc_num", 10


def write(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: str) -> None:
    """Write the tensors in their order, with the metadata and the seal, to a binary file.

    Raises:
        FormatError: a tensor's dtype has no name in the format.
    """
    with HashingWriter(file) as sealed:
        sealed.write(_text_record(METADATA_KEY, metadata))
        for name, array in tensors.items():
            require(array.dtype in _NAME_OF_TYPE, f"a .ckpt cannot hold {name} ({array.dtype})")
            type_name = _NAME_OF_TYPE[array.dtype]
            sealed.write(_record_head(name, array.shape, type_name, array.nbytes))
            sealed.write(raw_bytes(array))
    file.write(_text_record(DIGEST_KEY, sealed.hexdigest()))


def read(data: bytes) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors (read-only views of `data`) and the metadata of a `.ckpt`.

    The metadata is None for a file that the project did not write.

    Raises:
        FormatError: the bytes are no checkpoint, or the seal is broken.
    """
    records = _records(memoryview(_without_crc(data)))
    tensors, texts = {}, {}
    for name, slices in groupby(records, key=lambda record: record[0]):
        require(name not in tensors and name not in texts, f"it holds {name} twice")
        _, shapes, types, contents = zip(*slices, strict=True)
        if types[0] == _TEXT_TYPE:
            texts[name] = _decode(contents[0], _TEXT_ENCODING)
        else:
            require(types[0] in TYPE_NAMES, f"{name} in it has the unknown type {types[0]}")
            # MindSpore marks a scalar by the dimension 0, and slices what exceeds 512 MB.
            shape = () if shapes[0] == (0,) else shapes[0]
            content = contents[0] if len(contents) == 1 else b"".join(contents)
            tensors[name] = view_as_array(name, content, np.dtype(TYPE_NAMES[types[0]]), shape)
    if {METADATA_KEY, DIGEST_KEY} & (texts.keys() | tensors.keys()):
        _check_seal(data)
    return tensors, texts.get(METADATA_KEY)


def _check_seal(data: bytes) -> None:
    seal_length = len(_text_record(DIGEST_KEY, "0" * DIGEST_LENGTH))
    sealed = memoryview(data)[:-seal_length]
    expected = _text_record(DIGEST_KEY, hashlib.sha256(sealed).hexdigest())
    require(data[-seal_length:] == expected, DAMAGED)


def _text_record(name: str, text: str) -> bytes:
    content = text.encode(_TEXT_ENCODING)
    return _record_head(name, (0,), _TEXT_TYPE, len(content)) + content


def _record_head(name: str, shape: tuple[int, ...], type_name: str, size: int) -> bytes:
    """All of a record but the `size` bytes of content that end it."""
    tensor = b"".join(_key(1, _VARINT) + _varint(dim) for dim in shape)
    tensor += _length_prefixed(2, type_name.encode())
    tensor += _key(3, _BYTES) + _varint(size)
    value = _length_prefixed(1, name.encode())
    value += _key(2, _BYTES) + _varint(len(tensor) + size)
    return _key(1, _BYTES) + _varint(len(value) + len(tensor) + size) + value + tensor


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _length_prefixed(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _records(data: memoryview) -> Iterator[tuple[str, tuple[int, ...], str, memoryview]]:
    """Name, shape, type name and content of each record of a Checkpoint message."""
    for field, record in _fields(data):
        require(field == 1, _FOREIGN)
        parts = dict(_fields(record))
        require(parts.keys() == {1, 2}, _FOREIGN)
        tensor = list(_fields(parts[2]))
        shape = tuple(value for field, value in tensor if field == 1)
        others = {field: value for field, value in tensor if field != 1}
        require(others.keys() == {2, 3} and all(type(dim) is int for dim in shape), _FOREIGN)
        require(isinstance(others[3], memoryview), _FOREIGN)
        yield _decode(parts[1]), shape, _decode(others[2]), others[3]


def _fields(message: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a protobuf message: numbers, or the bytes of the rest."""
    require(isinstance(message, memoryview), _FOREIGN)
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        number, position = _read_varint(message, position)
        require(key & 7 in (_VARINT, _BYTES), _FOREIGN)
        if key & 7 == _VARINT:
            yield key >> 3, number
        else:
            require(position + number <= len(message), _CUT)
            yield key >> 3, message[position : position + number]
            position += number


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        require(position < len(data), _CUT)
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise FormatError(_FOREIGN)


def _without_crc(data: bytes) -> bytes:
    """The message without the crc32 that MindSpore appends on request, once that is checked."""
    trailer = len(_CRC_WORD) + _CRC_LENGTH
    if data[-trailer:-_CRC_LENGTH] != _CRC_WORD:
        return data
    message = data[:-trailer]
    require(binascii.crc32(message) == int.from_bytes(data[-_CRC_LENGTH:], "big"), DAMAGED)
    return message


def _decode(content: int | memoryview, encoding: str = "utf-8") -> str:
    require(isinstance(content, memoryview), _FOREIGN)
    try:
        return str(content, encoding)
    except UnicodeDecodeError as error:
        raise FormatError(_FOREIGN) from error
