"""Which files below a folder are data: everything that lists a folder of images does it with this.

What is passed over is counted, and told in one notice.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from PIL import Image

from mindtwins.console import tell
from mindtwins.errors import UserError

Image.init()
# Formats that Pillow recognizes, but leaves to other programs to decode.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Those of every format that Pillow opens (MPO is opened as JPEG).
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if (name in Image.OPEN or name == "MPO") and name not in _NOT_DECODED
)

# What operating systems, shares and tools leave behind, beside all whose names begin with a dot.
_LEFTOVERS = frozenset(
    name.lower()
    for name in (
        *("__MACOSX", "Icon\r", "Network Trash Folder", "Temporary Items"),  # macOS
        *("Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),  # Windows
        *("$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
        *("@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),  # NAS
        *("lost+found", "__pycache__"),
    )
)

# Why something is passed over, as the notice says it.
LEFTOVER = "left by systems and tools"
OTHER = "files of kinds that are not read here"
OUTSIDE = "images outside the class folders"
SUBFOLDER = "subfolders"
REPEATED = "links to folders that are read already"


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is no data."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def suffix_of(name: str) -> str:
    """The lower-case suffix of a file name, with its dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(names: Iterable[str]) -> str:
    """Names with the number of their occurrences, the most frequent first."""
    return some([name if n == 1 else f"{name} x {n}" for name, n in Counter(names).most_common()])


class FolderListing:
    """Lists below one root, and keeps what it passes over.

    Attributes:
        root: the folder.
        passed_over: names (of other files: suffixes) by the reason why they are no data.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.passed_over: dict[str, list[str]] = defaultdict(list)
        real = os.path.realpath(self.root)
        # Folders that are not entered by a link: a link to one that holds it is a loop.
        self._read = {real, *map(str, Path(real).parents)}

    def class_folders(self) -> list[str]:
        """The names of the folders in the root, sorted as strings; links to one of them are not."""
        names: list[str] = []
        links: list[str] = []
        for entry in _scan(self.root):
            if is_leftover(entry.name):
                self.passed_over[LEFTOVER].append(entry.name)
            elif _is_folder(entry):
                (links if entry.is_symlink() else names).append(entry.name)
            else:
                suffix = suffix_of(entry.name)
                if suffix in IMAGE_SUFFIXES:
                    self.passed_over[OUTSIDE].append(entry.name)
                else:
                    self.passed_over[OTHER].append(suffix or "without suffix")
        taken = self._read | {os.path.realpath(os.path.join(self.root, name)) for name in names}
        for name in links:
            real = os.path.realpath(os.path.join(self.root, name))
            if real in taken:
                self.passed_over[REPEATED].append(name)
            else:
                taken.add(real)
                names.append(name)
        return sorted(names)

    def files(
        self,
        folders: Sequence[str],
        suffixes: Collection[str] = IMAGE_SUFFIXES,
        descend: bool = True,
    ) -> list[list[str]]:
        """The files with one of the suffixes below each of the folders, in torchvision's order.

        That is by (sub)folder and then by name. Links are followed once all other folders have been
        read, and never into one that has been.

        Raises:
            UserError: a folder cannot be read.
        """
        found: list[list[tuple[str, list[str]]]] = [[] for _ in folders]
        # Subfolders go to the front, links to the back.
        waiting = deque((i, path, os.path.realpath(path)) for i, path in enumerate(folders))
        self._read.update(real for _, _, real in waiting)
        while waiting:
            number, folder, real = waiting.popleft()
            if not real:  # a link
                real = os.path.realpath(folder)
                if real in self._read:
                    self.passed_over[REPEATED].append(os.path.relpath(folder, self.root))
                    continue
                self._read.add(real)
            names = []
            for entry in _scan(folder):
                if is_leftover(entry.name):
                    self.passed_over[LEFTOVER].append(entry.name)
                elif not _is_folder(entry):
                    suffix = suffix_of(entry.name)
                    if suffix in suffixes:
                        names.append(entry.name)
                    else:
                        self.passed_over[OTHER].append(suffix or "without suffix")
                elif not descend:
                    self.passed_over[SUBFOLDER].append(entry.name)
                elif entry.is_symlink():
                    waiting.append((number, entry.path, ""))
                elif (below := os.path.join(real, entry.name)) in self._read:
                    self.passed_over[REPEATED].append(os.path.relpath(entry.path, self.root))
                else:
                    self._read.add(below)
                    waiting.appendleft((number, entry.path, below))
            found[number].append((folder, sorted(names)))
        return [
            [os.path.join(folder, name) for folder, names in sorted(parts) for name in names]
            for parts in found
        ]

    def tell(self) -> None:
        """Say what has been passed over, if anything."""
        if self.passed_over:
            reasons = "; ".join(
                f"{reason}: {len(names)} ({counted(names)})"
                for reason, names in self.passed_over.items()
            )
            tell(f"left out of {self.root}: {reasons}")


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes around in circles
        return False
