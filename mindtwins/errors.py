"""Mistakes of the user's, and how a script reports them."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mindtwins.console import guard_output


class UserError(ValueError):
    """A mistake of the user's: the message is one sentence saying what, where and what to do."""


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; a UserError becomes one line on stderr and exit code 1.

    So does what the system says of a file that it does not let the user read or write.
    """
    guard_output()
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
