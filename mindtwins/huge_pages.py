"""Memory in pages of 2 MB instead of 4 KB, which a processor finds without much looking up.

Linux gives them to who asks ("madvise", the setting of many distributions), and the C library asks
where an environment variable told it to before the process began.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Of the C library of GNU, from 2.35 on; others take no notice.
_VARIABLE, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# The number of a process that has begun anew, which it keeps. The variable itself may be taken away
# on the way: a Python with capabilities of its own (setcap) never sees it.
_BEGUN_ANEW = "MINDTWINS_BEGUN_ANEW"


def restart_with_huge_pages(interrupts: Collection[int] = ()) -> None:
    """Begin this process anew, as it was started, if it could have huge pages and does not ask.

    To be called by scripts before they do anything. Who has set `glibc.malloc.hugetlb` in
    GLIBC_TUNABLES is left with that, whatever it is, and who debugs with the process as it is.

    Args:
        interrupts: signals that are held back in the new process until it lets them through: while
            Python starts, it would answer them with a traceback.
    """
    environment = with_huge_pages(os.environ)
    if environment == os.environ or has_begun_anew() or policy() != "madvise":
        return
    if not sys.executable or sys.gettrace() is not None:
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    command = [sys.executable, *sys.orig_argv[1:]]
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
    try:
        os.execve(sys.executable, command, environment | {_BEGUN_ANEW: str(os.getpid())})
    finally:  # there is no new process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)


def has_begun_anew() -> bool:
    """Whether this process is one that has begun anew."""
    return os.environ.get(_BEGUN_ANEW) == str(os.getpid())


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which the C library asks for huge pages, if nothing is said of them yet."""
    said = environment.get(_VARIABLE, "")
    if _SETTING in said:
        return dict(environment)
    return {**environment, _VARIABLE: ":".join(filter(None, (said, f"{_SETTING}=1")))}


def policy() -> str:
    """Whom the system gives huge pages: "always", "madvise" (on request), "never"; or "unknown"."""
    try:
        return SYSTEM.read_text().split("[")[1].split("]")[0]  # all three, its own in brackets
    except (OSError, IndexError):  # another system
        return "unknown"
