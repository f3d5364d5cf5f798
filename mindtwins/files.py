"""Reading and writing whole files: one clear error, and no half-written output."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
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
    """Raise a UserError unless `path` is a file that may be read and has something in it."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a file")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: {os.strerror(errno.EACCES)}")


def check_writable(path: str | os.PathLike) -> None:
    """Raise a UserError unless a file could be at `path`: worth asking before long work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {os.strerror(errno.EACCES)}")


def check_outputs(
    outputs: Mapping[str, str | os.PathLike | None], inputs: Iterable[str | os.PathLike]
) -> None:
    """Check before long work that a script's results have a place, each one of its own.

    Args:
        outputs: by flag; a flag that was not given has no path.
        inputs: files that the script reads.

    Raises:
        UserError: a file cannot be written, or would take the place of an input or another output.
    """
    taken = {Path(path).resolve() for path in inputs}
    for flag, path in outputs.items():
        if not path:
            continue
        check_writable(path)
        resolved = Path(path).resolve()
        if resolved in taken:
            raise UserError(
                f"{path} is read or written by this command already: choose another {flag}"
            )
        taken.add(resolved)


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a name for a file that takes the place of `path` whole when the block ends, or never.

    The file has the same name in a temporary folder beside `path`. It is synced to the disk, gets
    the usual permissions, and replaces `path` in one step: a crash at any moment leaves the
    previous file as it was. On an error the folder is removed with all that lies in it; a full disk
    or a missing folder is a UserError.
    """
    check_writable(path)
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves of 0666
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            os.replace(temporary, path)
        _sync(path.parent)  # so that the new name itself survives a power cut
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` whole when the block ends, or not at all.

    As `replaced_file`, for those who write to an open file.
    """
    with replaced_file(path) as temporary, open(temporary, "w+b") as file:
        yield file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
