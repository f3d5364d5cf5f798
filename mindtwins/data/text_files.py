"""Small text files that people write: image lists and names of classes."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path

from mindtwins.errors import UserError


def read_lines(path: str | os.PathLike[str], what: str, *, file_names: bool = False) -> list[str]:
    """The lines of a text file as any editor saves it, without space around them.

    UTF-8, with or without a byte order mark, or UTF-16 with one; lines end as on any system, and
    empty ones at the end do not count.

    Args:
        what: the file is, for messages.
        file_names: the lines hold file names: bytes that are not UTF-8 are kept, as `os.fsdecode`
            keeps them.

    Raises:
        UserError: the file cannot be read, or is in another encoding.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig", "surrogateescape" if file_names else "strict")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the {what} {path}: it is not in UTF-8 ({error.reason} at byte "
            f"{error.start}); save it as UTF-8"
        ) from error
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]


def read_class_names(path: str | os.PathLike[str], *, unique: bool = False) -> tuple[str, ...]:
    """The names of classes, in the order of their numbers.

    The file has a name per line, or is a `.json` file: a list of names, or an object of numbers
    and names, in whichever of the two ways.

    Args:
        unique: whether no two classes may have the same name.

    Raises:
        UserError: the file cannot be read, or a name is empty, or repeated where it may not be.
    """
    lines = read_lines(path, "class list")
    is_json = Path(path).suffix.lower() == ".json"
    names = _names_in_json("\n".join(lines), path) if is_json else lines
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        what = "is empty" if not name else f"repeats {name!r}" if unique and name in seen else ""
        if what:
            place = f"name {number}" if is_json else f"line {number}"
            raise UserError(f"{path}, {place} {what}: give one name per class and line")
        seen.add(name)
    return tuple(names)


def _names_in_json(text: str, path: str | os.PathLike[str]) -> list[str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"cannot read the class list {path}: it is no JSON ({error})") from error
    if isinstance(value, dict):
        numbers_first = not all(isinstance(number, int) for number in value.values())
        pairs = value.items() if numbers_first else ((n, name) for name, n in value.items())
        try:
            numbered = {int(number): name for number, name in pairs}
        except ValueError:
            numbered = {}
        value = [numbered.get(number) for number in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(
            f"the class list {path} must be a JSON list of names, or an object of the numbers from "
            "0 on and their names"
        )
    return [" ".join(name.split()) for name in value]
