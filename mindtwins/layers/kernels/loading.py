"""The compiled kernels: where they are, whether they can run here, and on how many threads."""

from __future__ import annotations

import ctypes
import functools
import os
import sysconfig
from pathlib import Path

FILE = Path(__file__).parent / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


@functools.cache
def _problem() -> str | None:
    """Why the kernels cannot be used, or None; loads them and sets their number of threads."""
    if not FILE.exists():
        return "not built: no C++ compiler when MindTwins was installed"
    if ":" in str(FILE):
        return f"not usable: MindSpore takes no library from a path with a colon, {FILE}"
    try:
        library = ctypes.CDLL(str(FILE))
    except OSError as error:
        return f"not usable: {error}"
    if not library.mindtwins_supported():
        return "not usable: built for another processor; install MindTwins again on this one"
    library.mindtwins_set_threads(_thread_count())
    return None


def _thread_count() -> int:
    """As many threads as MindSpore's own operators get: the cores, or OMP_NUM_THREADS if fewer."""
    cores = len(os.sched_getaffinity(0))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def available() -> bool:
    """Whether the kernels can be used in this process."""
    return _problem() is None


def status() -> str:
    """One line for people: active and where they are, or why not."""
    return f"CPU kernels: {_problem() or f'active ({FILE})'}"
