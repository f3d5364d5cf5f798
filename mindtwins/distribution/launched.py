"""A rank as the child of the process that a launcher started.

At Ctrl-C launchers kill what they started, msrun at once and mpirun within a second: too soon for
a step to be finished and a checkpoint to be written. So the process that they started only waits,
and the rank is its child, in a session of its own. When the one that waits is gone, the rank gets
SIGTERM, ends as it does after any other, and says so where the launcher would have.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import NoReturn

from mindtwins.errors import INTERRUPTS

# How long a rank may take, without its launcher, to finish a step (compiling it, perhaps) and to
# write a checkpoint.
GRACE_SECONDS = 900.0
_LOOK_SECONDS = 0.2


def stand_apart(ends_on_its_own: bool = False) -> None:
    """Go on in a child process; this one waits for it, and ends with its exit code or signal.

    To be called before there are threads.

    Args:
        ends_on_its_own: the child is not to be told when the one that waits is gone.
    """
    output = _launcher_output()
    sys.stdout.flush()
    sys.stderr.flush()
    waiting = os.getpid()
    child = os.fork()
    if child:
        _wait_for(child)
    os.setsid()
    arguments = [waiting, output, ends_on_its_own]
    threading.Thread(target=_watch, args=arguments, name="launcher", daemon=True).start()


def _wait_for(child: int) -> NoReturn:
    for number in INTERRUPTS:
        signal.signal(number, lambda number, frame: os.kill(child, number))
    while True:
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            os._exit(os.WEXITSTATUS(status))
        if os.WIFSIGNALED(status):
            killed_by = os.WTERMSIG(status)
            if killed_by != signal.SIGKILL:
                signal.signal(killed_by, signal.SIG_DFL)
            os.kill(os.getpid(), killed_by)
            os._exit(128 + number)  # a signal that does not end this process


def _watch(waiting: int, output: int | None, ends_on_its_own: bool) -> None:
    """When the process that waits is gone, have this one end, and speak where it is heard."""
    while os.getppid() == waiting:
        time.sleep(_LOOK_SECONDS)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    if not ends_on_its_own:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _launcher_output() -> int | None:
    """What the launcher prints to, be it a terminal, a file or a pipe, if it can be told."""
    for path in (f"/proc/{os.getppid()}/fd/1", "/dev/tty"):
        with contextlib.suppress(OSError):
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    return None
