"""What the numbers were measured on.

    python -m benchmarks.machine [--device_target GPU]

The processor and the versions; of a GPU also the card, the driver and the CUDA libraries that
MindSpore loads; how long a first operation takes, and MindSpore's own check. As that is quick,
--quick changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path

import mindspore as ms
from mindspore import ops

from benchmarks.command import Table, parser
from benchmarks.inputs import EAGER
from benchmarks.workers import Failed, start
from mindtwins import huge_pages
from mindtwins.errors import run_cli
from mindtwins.execution import use_device
from mindtwins.layers import kernels
from mindtwins.layers.kernels import loading

PACKAGES = ("mindspore", "torch", "timm", "onnxruntime", "openvino", "numpy")
_LIBRARIES = re.compile(r"lib(cudart|cublas|cublasLt|cudnn|nccl|cuda|mindspore_gpu)\.so[.\d]*$")


def describe() -> str:
    """Date, processor, cores, load, versions, kernels and pages of memory, in a few lines."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    processor = model[1] if model else platform.processor()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return "\n".join(
        [
            f"{date.today()}, {processor}, {cores} cores used, load {load:.1f}",
            f"Python {platform.python_version()}, {', '.join(versions)}",
            f"{kernels.status().partition(' (')[0]}; huge pages: {huge_pages.policy()}, "
            f"GLIBC_TUNABLES: {os.environ.get('GLIBC_TUNABLES', 'not set')}",
        ]
    )


@cache
def card(fields: str = "name") -> str:
    """What the driver says of the first NVIDIA card; "" without a driver."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return output.stdout.partition("\n")[0]


@cache
def core_peak() -> float | None:
    """Floating-point operations per second of one core, from registers; None without kernels."""
    library = loading.library()
    if library is None:
        return None
    multiply_adds = ctypes.CDLL(str(library)).mindtwins_multiply_adds
    multiply_adds.argtypes, multiply_adds.restype = [ctypes.c_int64], ctypes.c_int64
    count, best = 24_000_000, 0.0
    for _ in range(5):
        start = time.process_time()
        lanes = multiply_adds(count)
        best = max(best, 2 * count * lanes / (time.process_time() - start))
    return best


def main(argv: list[str]) -> None:
    """Print the tables."""
    options = parser(__doc__).parse_args(argv)
    print(describe())
    table = Table("environment", "what", "found")
    fields = "name,driver_version,memory.total,compute_cap"
    table.row("card, driver, memory, compute capability", card(fields) or "none")
    peak = core_peak()
    table.row("multiply-adds of a core", f"{peak / 1e9:.0f} GFLOP/s" if peak else "no kernels")
    with start(EAGER, options.torch_python) as torch:
        try:
            table.row("PyTorch", torch.ask("environment")["found"])
        except Failed as problem:
            table.row("PyTorch", str(problem))
    started = time.perf_counter()
    use_device(options.device_target)
    ops.matmul(ops.ones((256, 256)), ops.ones((256, 256))).asnumpy()
    seconds = time.perf_counter() - started
    table.row("MindSpore", f"{ms.__version__} on {ms.get_current_device().device_target}")
    table.row("its first operation", f"{seconds:.1f} s")
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    found = sorted({Path(path).resolve().name for path in mapped if _LIBRARIES.search(path)})
    table.row("its libraries", ", ".join(found) or "none of CUDA")
    ms.run_check()  # prints what it finds


if __name__ == "__main__":
    run_cli(main)
