"""What a file is, by its content: names end in whatever people call them.

A sound file of a format that is not read here is named as what it is. Only a file of no known
format may be called damaged.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

HEAD = 1024  # bytes of a file that tell its format


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: with its article.
        advice: what to do with such a file instead; empty for those that are read.
    """

    name: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.advice}" if self.advice else self.name


TORCH_ZIP = Format("a PyTorch checkpoint")
TORCH_LEGACY = Format("a PyTorch checkpoint of before version 1.6")
SAFETENSORS = Format("a .safetensors file")
SHARD_INDEX = Format("an index of shards")
MINDSPORE = Format(
    "a MindSpore checkpoint", "it needs no conversion, and mindtwins convert-back goes back"
)

_SAVE_WEIGHTS = "save the model's state_dict() instead"
_UNPACK = "unpack it and give the checkpoint in it"
_FETCH = "fetch the file itself"

# In files of torch.save before version 1.6, right at the start.
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019") + b"."

# Formats that begin with the same bytes each time: their place and the bytes.
_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", Format("a Keras or HDF5 file", "only PyTorch's weights are read")),
    (0, b"GGUF", Format("a GGUF file", "only PyTorch's weights are read")),
    (4, b"TFL3", Format("a TensorFlow Lite model", "only PyTorch's weights are read")),
    (0, b"\x93NUMPY", Format("a NumPy array", _SAVE_WEIGHTS)),
    (0, b"version https://git-lfs", Format("a pointer of Git LFS", f"{_FETCH} with git lfs pull")),
    (0, b"\x1f\x8b", Format("a gzip archive", _UNPACK)),
    (0, b"BZh", Format("a bzip2 archive", _UNPACK)),
    (0, b"\xfd7zXZ\0", Format("an xz archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Format("a Zstandard archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", _UNPACK)),
    (0, b"Rar!", Format("a RAR archive", _UNPACK)),
    (257, b"ustar", Format("a tar archive", _UNPACK)),
    (0, b"\xff\xd8\xff", Format("a JPEG picture", "give a checkpoint")),
    (0, b"\x89PNG", Format("a PNG picture", "give a checkpoint")),
    (0, b"%PDF", Format("a PDF document", "give a checkpoint")),
    (0, b"\x7fELF", Format("a program or library", "give a checkpoint")),
)
# Texts, by how they begin, without regard to case and leading space.
_TEXTS = (
    ((b"<!doctype html", b"<html", b"<head"), Format("a web page", f"{_FETCH}, not its page")),
    ((b"<?xml", b"<error"), Format("an XML document", f"{_FETCH}: it may hold a server's error")),
)
_TORCHSCRIPT = Format("a TorchScript archive", f"load it with torch.jit.load and {_SAVE_WEIGHTS}")
# Zip archives, by what the name of a member ends in; the first that is there.
_MEMBERS = (
    (
        "constants.pkl",
        _TORCHSCRIPT,
    ),
    ("serialized_exported_program.json", Format("a program of torch.export", _SAVE_WEIGHTS)),
    ("archive_format", Format("a program of torch.export", _SAVE_WEIGHTS)),
    (".data/extern_modules", Format("a package of torch.package", _SAVE_WEIGHTS)),
    ("data.pkl", TORCH_ZIP),
    ("model.weights.h5", Format("a Keras model", "only PyTorch's weights are read")),
    (".npy", Format("a NumPy archive", _SAVE_WEIGHTS)),
    ("", Format("a zip archive", _UNPACK)),
)
_PICKLE = Format("a pickle, but not of torch.save", _SAVE_WEIGHTS)
_ONNX = Format("an ONNX model", "only PyTorch's weights are read")
_JSON = Format("a JSON text", "give the file with the weights")
_PLAIN = Format("a text", "give the file with the weights")
_SPACES = dict.fromkeys(map(ord, "\t\r\n"), " ")


def identify(file: BinaryIO) -> Format | None:
    """The format of an open file, which is at its start; None for one of no known format.

    That is something else, was cut short, or is damaged.
    """
    head = file.read(HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _zip(file)
    return next((found for test in _TESTS if (found := test(head))), None)


def _zip(file: BinaryIO) -> Format | None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # cut short: the list of members is at the end
    ends = ((form, [name for name in members if name.endswith(end)]) for end, form in _MEMBERS)
    return next((form for form, found in ends if found), None)


def _by_magic(head: bytes) -> Format | None:
    return next((form for at, magic, form in _MAGIC if head[at:].startswith(magic)), None)


def _safetensors(head: bytes) -> Format | None:
    """Eight bytes of length, then a JSON object."""
    return SAFETENSORS if re.match(rb'.{6}\0\0\{\s*["}]', head, re.DOTALL) else None


def _pickled(head: bytes) -> Format | None:
    if not re.match(rb"\x80[\x02-\x05]", head):
        return None
    return TORCH_LEGACY if _LEGACY_MAGIC in head[:32] else _PICKLE


def _mindspore(head: bytes) -> Format | None:
    """A record (field 1), which begins with a parameter's name (field 1 in it)."""
    match = re.match(rb"\n[\x80-\xff]{0,9}[\0-\x7f]\n([\x01-\x7f])([ -~]+)", head)
    return MINDSPORE if match and len(match[2]) >= match[1][0] else None


def _onnx(head: bytes) -> Format | None:
    """The version of its format (field 1), then who made it (2), the graph (7) or versions (8)."""
    return _ONNX if re.match(rb"\x08[\x01-\x1e](\x12[\x01-\x7f][ -~]|[:B])", head) else None


def _text(head: bytes) -> Format | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for starts, form in _TEXTS:
        if text.startswith(starts):
            return form
    if re.match(rb'[{\[]\s*["}\]{\[]', text):
        return SHARD_INDEX if b'"weight_map"' in text or b'"total_size"' in text else _JSON
    # The head may end within a letter; what is damaged has bytes that no text has.
    words = text.decode("utf-8", "replace").rstrip("\ufffd").translate(_SPACES)
    return _PLAIN if words and words.isprintable() and "\ufffd" not in words else None


_TESTS: tuple[Callable[[bytes], Format | None], ...] = (
    _by_magic,
    _safetensors,
    _pickled,
    _mindspore,
    _onnx,
    _text,
)
