"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

from mindtwins.layers import kernels

PACKAGES = ("mindspore", "torch", "timm", "numpy")


def describe(threads: int) -> str:
    """Date, processor, threads, versions, kernels and how busy the machine is, in a few lines."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return "\n".join(
        [
            f"{date.today()}, {processor}, {len(os.sched_getaffinity(0))} cores,"
            f" {threads} threads, load {os.getloadavg()[0]:.1f}",
            f"Python {platform.python_version()}, {', '.join(versions)}",
            kernels.status().partition(" (")[0],
        ]
    )
