"""Mistakes of the user's, and how a script reports them; and how it ends when it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mindtwins.console import guard_output
from mindtwins.huge_pages import has_begun_anew, restart_with_huge_pages

# What ends a script: Ctrl-C, and what schedulers and `kill` send.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

_interrupted_by: int | None = None
_tells = True


class UserError(ValueError):
    """A mistake of the user's: the message is one sentence saying what, where and what to do."""


def run_cli(main: Callable[[list[str]], None], tells: bool = True) -> None:
    """Run a script's `main(argv)`; a UserError becomes one line on stderr and exit code 1.

    So does what the system says of a file that it does not let the user read or write, and a lack
    of memory. An interrupt becomes one line and 128 + its number, whatever a library makes of it.
    The process may begin anew first: see `huge_pages`.

    Args:
        main: takes the arguments after the script's name.
        tells: whether this process is the one of a job that prints the line of an interrupt.
    """
    global _tells
    _tells = tells
    guard_output()
    before = take_interrupts()
    try:
        restart_with_huge_pages(INTERRUPTS)
        main(sys.argv[1:])
    except Exception as error:
        if was_interrupted():  # MindSpore passes a KeyboardInterrupt on as an error of its own
            end_interrupted()
        message = _message(error)
        if message is None:  # a mistake of ours
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        end_interrupted()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_interrupts() -> dict[int, Any]:
    """Let interrupts that are not to be ignored come to `_interrupt`; gives the handlers before."""
    default = (signal.SIG_DFL, signal.default_int_handler)
    taken = [number for number in INTERRUPTS if signal.getsignal(number) in default]
    before: dict[int, Any] = {number: signal.signal(number, _interrupt) for number in taken}
    if has_begun_anew():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    return before


def was_interrupted() -> bool:
    """Whether Ctrl-C or SIGTERM came to a script that runs under `run_cli`."""
    return _interrupted_by is not None


def end_interrupted(number: int | None = None) -> NoReturn:
    """End this process as one that a signal interrupted (the first that came), at once.

    Not by an exception: inside an import that ends in tracebacks or in an abort, and MindSpore's
    way out takes seconds.
    """
    with contextlib.suppress(Exception):  # the interrupted code may be in the middle of using it
        sys.stdout.flush()
    if _tells:
        os.write(2, b"interrupted\n")
    os._exit(128 + (number or _interrupted_by or signal.SIGINT))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End: at once where nothing is to be put in order, else through the blocks that do so."""
    global _interrupted_by
    is_second = was_interrupted()
    _interrupted_by = _interrupted_by or number
    if is_second or _is_amid_others(frame):
        end_interrupted()
    raise KeyboardInterrupt


def _is_amid_others(frame: FrameType | None) -> bool:
    """Whether a module is being imported or MindSpore compiles: both make a mess of exceptions."""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib"):
            return True
        if function == "compile" and "mindspore" in Path(file).parts:
            return True
        frame = frame.f_back
    return False


def _message(error: Exception) -> str | None:
    """What to tell the user; None for what is not the user's mistake."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the memory is full: close other programs, or use a smaller batch or model"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None
