"""The compiled kernels: which build suits this processor, and on how many threads they run."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from pathlib import Path

# What `numpy.show_runtime()` prints: found by the processor's word and by that of the system, which
# has to keep the registers.
from numpy.core._multiarray_umath import __cpu_features__

FOLDER = Path(__file__).parent

# The builds of setup.py, the fastest first, and what of NumPy's names each was compiled for. One is
# chosen before it is loaded: loading alone runs code of it.
BUILDS = {
    "x86_64_v4": ("AVX512_SKX", "AVX2", "FMA3", "F16C"),
    "x86_64_v3": ("AVX2", "FMA3", "F16C"),
    "aarch64": ("ASIMD",),
}


def suitable(features: Mapping[str, bool]) -> list[str]:
    """The builds that run on a processor with these features, the fastest first."""
    return [build for build, needs in BUILDS.items() if all(map(features.get, needs))]


@functools.cache
def _load() -> Path | str:
    """The library, loaded and told its number of threads; or why there is none."""
    builds = suitable(__cpu_features__)
    if not builds:
        return "not usable: they need a processor with AVX2, FMA and F16C, or one of aarch64"
    files = [file for build in builds if (file := FOLDER / f"_kernels_{build}.so").exists()]
    if not files:
        return "not built: no C++ compiler when MindTwins was installed"
    if ":" in str(files[0]):
        return f"not usable: MindSpore takes no library from a path with a colon, {files[0]}"
    try:
        loaded = ctypes.CDLL(str(files[0]))
    except OSError as error:
        return f"not usable: {error}"
    loaded.mindtwins_set_threads(_thread_count())
    return files[0]


def _thread_count() -> int:
    """As many threads as MindSpore's own operators get: the cores, or OMP_NUM_THREADS if fewer."""
    cores = len(os.sched_getaffinity(0))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def library() -> Path | None:
    """The library that this process uses, if there is one."""
    found = _load()
    return found if isinstance(found, Path) else None


def available() -> bool:
    """Whether the kernels can be used in this process."""
    return library() is not None


def status() -> str:
    """One line for people: active, for which processors and where, or why not."""
    found = _load()
    if isinstance(found, str):
        return f"CPU kernels: {found}"
    return f"CPU kernels: active, built for {found.stem.removeprefix('_kernels_')} ({found})"
