"""Reading and writing whole files: one clear error, and no half-written output."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mindtwins.errors import UserError


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file; a UserError if it is missing, a directory, unreadable or empty."""
    check_readable(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def check_readable(path: str | os.PathLike) -> None:
    """Raise a UserError unless `path` is a file with something in it."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a file")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")


def check_writable(path: str | os.PathLike) -> None:
    """Raise a UserError unless a file could be at `path`: worth asking before long work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` whole when the block ends, or not at all.

    The bytes go to `.<name>.<pid>.tmp` in the same folder, are synced to the disk, and replace
    `path` in one step: a crash at any moment leaves the previous file as it was. On an error the
    temporary file is removed; a full disk or a missing folder is a UserError.
    """
    check_writable(path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # Gone already when the replacement succeeded.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
