"""Standard output that may be closed, full, or unable to show a character.

What a script prints is for people; its results are files. So none of these ends a program: whatever
cannot be shown is lost with a word, and the work goes on.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO

# For what every rank would say alike: only rank 0's is heard.
notices = logging.getLogger("mindtwins.notices")


def tell(text: str) -> None:
    """Say something that the user should know of, but need not do anything about."""
    notices.warning("notice: %s", text)


class SafeOutput:
    """A text stream whose writes do not fail.

    A reader that went away (`| head`) is no mistake: the rest is dropped in silence. Another
    reason, such as a full disk, is told once on standard error. Characters that the stream's
    encoding lacks are written as escapes.

    Attributes:
        is_closed: nobody reads any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_closed = False
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write as far as that is possible."""
        if not self.is_closed:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush as far as that is possible."""
        if not self.is_closed:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.is_closed = True
        if not isinstance(error, BrokenPipeError):
            reason = error.strerror or error
            print(f"notice: standard output cannot be written ({reason})", file=sys.stderr)
        # What is still buffered would fail again when the program ends.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Make standard output and standard error streams whose writes do not fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeOutput):
            setattr(sys, name, SafeOutput(stream))


def nobody_reads() -> bool:
    """Whether standard output was closed by its reader."""
    return isinstance(sys.stdout, SafeOutput) and sys.stdout.is_closed
