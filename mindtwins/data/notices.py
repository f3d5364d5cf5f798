"""Remarks on data that is used all the same: a line each, by rank 0, and once for each kind."""

from __future__ import annotations

import mmap
import os
import threading
import warnings
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mindtwins.console import tell

# A byte for each kind, by its checksum: worker processes share them, unlike a set.
_told = mmap.mmap(-1, 1 << 16)
_lock = threading.Lock()
_reading = threading.local()


def tell_once(kind: Hashable, text: str) -> None:
    """Say it unless something of its kind has been said: the first file stands for all like it.

    Args:
        kind: kinds are the same if they print alike, which sets need not.
        text: what to say.
    """
    place = zlib.crc32(repr(kind).encode(errors="backslashreplace")) % len(_told)
    with _lock:
        is_new = not _told[place]
        _told[place] = 1
    if is_new:
        tell(text)


@contextmanager
def about_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a library warns of within the block into a remark on the file."""
    before = getattr(_reading, "path", None)
    _reading.path = os.fspath(path)
    try:
        yield
    finally:
        _reading.path = before


def tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stands for `warnings.showwarning`; outside of `about_file` it is as it was."""
    path = getattr(_reading, "path", None)
    if path is None:
        _show_warning(message, category, filename, lineno, file, line)
    else:
        # The line of code is the kind: the texts differ by file.
        library, text = Path(filename).parent.name, " ".join(str(message).split())
        tell_once((category, filename, lineno), f"{path}: {library} warns: {text}")


# `warnings.catch_warnings` is no way to know of a warning's file: it is not safe with threads.
_show_warning, warnings.showwarning = warnings.showwarning, tell_warning
