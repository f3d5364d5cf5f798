"""Reading and writing whole files: one clear error, and no half-written output."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mindtwins.errors import UserError

_ARRAY_END = b"\n]\n"


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
    """Raise a UserError unless a file could be at `path`: worth asking before long work.

    A link stands for what it points to. Devices and pipes are written through.
    """
    target = _target(path)
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a directory")
    if _is_stream(target):
        if not os.access(target, os.W_OK):
            raise UserError(f"cannot write {path}: {os.strerror(errno.EACCES)}")
        return
    if target.exists() and not target.is_file():
        raise UserError(f"cannot write {path}: it is neither a file nor a pipe nor a device")
    if not target.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        reason = errno.EROFS if _is_read_only(target.parent) else errno.EACCES
        raise UserError(f"cannot write {path}: {os.strerror(reason)}")


def _target(path: str | os.PathLike) -> Path:
    """Where a path leads, links followed."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_stream(path: Path) -> bool:
    """Whether bytes go through a path rather than lie there: a character device or a pipe."""
    return path.is_char_device() or path.is_fifo()


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


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
    or a missing folder is a UserError. A link stays, and the file that it points to is replaced; a
    device or a pipe stays, and gets the bytes at the end.
    """
    check_writable(path)
    target = _target(path)
    through = _is_stream(target)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=None if through else target.parent
        ) as folder:
            temporary = Path(folder, target.name)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask leaves of 0666
            yield temporary
            if through:
                with open(temporary, "rb") as content, open(target, "wb") as stream:
                    shutil.copyfileobj(content, stream)
                return
            temporary.chmod(mode)
            _sync(temporary)
            os.replace(temporary, target)
        _sync(target.parent)  # so that the new name itself survives a power cut
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that appears under `path` whole when the block ends, or not at all.

    As `replaced_file`, for those who write to an open file.
    """
    with replaced_file(path) as temporary, open(temporary, "w+b") as file:
        yield file


class JsonArray:
    """A JSON file that grows by an entry at a time and is a valid array after each.

    Nothing is touched before the first entry, or before `close` if there is none. A device or a
    pipe gets the whole at the end.

    Args:
        path: of the file; None writes none.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike | None) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._waiting: list[object] = []  # for a stream, which cannot be gone back in

    def __enter__(self) -> JsonArray:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, entry: object) -> None:
        """Append an entry that JSON can hold."""
        if not self._path:
            return
        if _is_stream(_target(self._path)):
            self._waiting.append(entry)
            return
        separator = b"\n" if self._file is None else b",\n"
        text = json.dumps(entry, indent=2).encode("utf-8", "surrogateescape")
        try:
            file = self._open(self._path)
            end = file.seek(-len(_ARRAY_END), os.SEEK_END)
            data = separator + text + _ARRAY_END
            if file.write(data) < len(data):  # as much as the disk had room for
                file.truncate(end)
                file.seek(end)
                file.write(_ARRAY_END)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Finish; an array without entries is written now."""
        if not self._path:
            return
        if _is_stream(_target(self._path)):
            with atomic_write(self._path) as stream:
                stream.write(json.dumps(self._waiting, indent=2).encode() + b"\n")
            return
        self._open(self._path).close()

    def _open(self, path: str | os.PathLike) -> io.FileIO:
        if self._file is None:
            # Without a buffer: an entry is there as soon as it is added.
            self._file = io.FileIO(path, "w+")
            self._file.write(b"[" + _ARRAY_END)
        return self._file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
