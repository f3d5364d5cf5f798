"""Mistakes of the user's, and how a script reports them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake of the user's: the message is one sentence saying what, where and what to do."""


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; a UserError becomes one line on stderr and exit code 1.

    So does what the system says of a file that it does not let the user read or write.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not a stream of text with an encoding
            # What a terminal cannot show of names is told by number; it ends no run.
            stream.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # not about a file: a mistake of ours
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
