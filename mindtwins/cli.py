"""Command lines: a mistake is one sentence, which names the nearest flag."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from mindtwins.errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes whole flags only, and reports mistakes as a UserError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        raise UserError(f"command line: {message}")

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse all of `args`.

        Raises:
            UserError: an unknown flag, a word that belongs to none, or a bad value.
        """
        known, rest = self.parse_known_args(list(args))
        for word in rest:
            if word.startswith("-"):
                flags = [flag for action in self._actions for flag in action.option_strings]
                raise UserError(f"command line: unknown flag {nearest(word.split('=')[0], flags)}")
            raise UserError(f"command line: {word!r} belongs to no flag")
        return known


def nearest(name: str, known: Sequence[str]) -> str:
    """The quoted name, and the known one that is most like it if there is one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
