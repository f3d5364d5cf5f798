"""The compiled kernels as a library: which build is used and when, and with how many threads."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn

import mindtwins.layers
from mindtwins.layers import kernels
from mindtwins.layers.kernels import loading

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=kernels.status())

HASWELL = {"AVX2", "FMA3", "F16C", "AVX", "SSE42"}
SKYLAKE_SERVER = HASWELL | {"AVX512F", "AVX512CD", "AVX512_SKX"}


@pytest.fixture
def in_use():
    """The library that is active; asked for before `folder` hides it."""
    return loading.library()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder in which the libraries are looked for."""
    monkeypatch.setattr(loading, "FOLDER", tmp_path)
    loading._load.cache_clear()
    yield tmp_path
    loading._load.cache_clear()


@pytest.mark.parametrize(
    ("processor", "builds"),
    [
        (SKYLAKE_SERVER, ["x86_64_v4", "x86_64_v3"]),
        (HASWELL, ["x86_64_v3"]),
        (HASWELL | {"AVX512F", "AVX512CD"}, ["x86_64_v3"]),  # Knights Landing
        (HASWELL - {"FMA3"}, []),
        (SKYLAKE_SERVER - {"AVX2"}, []),  # NPY_DISABLE_CPU_FEATURES=AVX2
        ({"SSE42", "POPCNT"}, []),  # Nehalem
        ({"NEON", "ASIMD"}, ["aarch64"]),
    ],
)
def test_the_builds_that_a_processor_can_run(processor: set[str], builds: list[str]):
    names = SKYLAKE_SERVER | processor
    assert loading.suitable({name: name in processor for name in names}) == builds


def test_status_says_why_the_kernels_are_not_used(folder):
    assert not kernels.available()
    assert kernels.status() == (
        "CPU kernels: not built: no C++ compiler when MindTwins was installed"
    )
    assert mindtwins.layers.formulation() == "matmul"
    with (
        pytest.raises(ValueError, match="CPU kernels: not built"),
        mindtwins.layers.use_formulation("kernel"),
    ):
        pass


def test_a_processor_below_all_builds_uses_none(folder, monkeypatch):
    monkeypatch.setattr(loading, "__cpu_features__", {"SSE42": True, "AVX2": False})
    for build in loading.BUILDS:
        (folder / f"_kernels_{build}.so").touch()
    assert not kernels.available()
    assert kernels.status() == (
        "CPU kernels: not usable: they need a processor with AVX2, FMA and F16C, or one of aarch64"
    )


def test_a_file_that_is_no_library_is_not_used(folder):
    for build in loading.BUILDS:
        (folder / f"_kernels_{build}.so").write_bytes(b"not a library")
    assert not kernels.available()
    assert kernels.status().startswith("CPU kernels: not usable: ")


@needs_kernels
def test_the_next_best_build_stands_in_for_one_that_is_missing(in_use, folder, monkeypatch):
    """A compiler may be too old for the newest processors."""
    monkeypatch.setattr(loading, "BUILDS", {"fast": (), "slow": ()})
    shutil.copy(in_use, folder / "_kernels_slow.so")
    assert (
        kernels.status() == f"CPU kernels: active, built for slow ({folder / '_kernels_slow.so'})"
    )


@needs_kernels
def test_the_best_build_that_suits_is_active():
    build = loading.suitable(loading.__cpu_features__)[0]
    file = Path(loading.__file__).parent / f"_kernels_{build}.so"
    assert kernels.status() == f"CPU kernels: active, built for {build} ({file})"


# Chooses, loads and calls as the package does, without MindSpore, which takes long to emulate and
# needs AVX2 itself. Prints the build, and how far gelu is from that of the standard library.
EMULATED = """
import ctypes, importlib.util, math, sys
import numpy as np

spec = importlib.util.spec_from_file_location("loading", sys.argv[1])
loading = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loading)
if not loading.available():
    sys.exit(loading.status())
x = np.linspace(-6, 6, 1000, dtype=np.float32)
y = np.empty_like(x)
shape = (ctypes.c_int64 * 1)(1000)
failed = ctypes.CDLL(str(loading.library())).gelu(
    2,
    (ctypes.c_void_p * 2)(*(array.ctypes.data for array in (x, y))),
    (ctypes.c_int * 2)(1, 1),
    (ctypes.c_void_p * 2)(*[ctypes.addressof(shape)] * 2),
    (ctypes.c_char_p * 2)(*[b"float32"] * 2),
    None,
    None,
)
assert not failed
exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6)
print(loading.library().stem)
"""


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="no qemu-user")
@needs_kernels
@pytest.mark.parametrize(
    ("processor", "found"),
    [
        ("Haswell", "_kernels_x86_64_v3"),
        ("EPYC-Rome", "_kernels_x86_64_v3"),
        # What NumPy does not tell of is not used.
        ("Haswell,-bmi1,-bmi2,-abm,-movbe", "_kernels_x86_64_v3"),
        ("Nehalem", ""),
    ],
)
def test_emulated_processors_run_the_build_that_is_chosen(processor: str, found: str):
    command = ["qemu-x86_64", "-cpu", processor, sys.executable, "-c", EMULATED, loading.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == found, done.stderr
    if not found:
        assert done.returncode == 1  # a signal's would be negative
        assert "CPU kernels: not usable: they need a processor with AVX2" in done.stderr


@pytest.mark.parametrize(("wanted", "threads"), [("1", 1), ("999", 3), ("", 3), ("no", 3)])
def test_threads_follow_the_cores_and_omp_num_threads(monkeypatch, wanted, threads):
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert loading._thread_count() == threads


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads():
    """Bit for bit, gradients that sum over tokens included."""
    rng = np.random.default_rng(0)
    x, dy = (Tensor(rng.standard_normal((3, 40, 40, 48)).astype(np.float32)) for _ in range(2))
    gamma = Tensor(rng.standard_normal(48).astype(np.float32))
    weight = Tensor(rng.standard_normal((48, 1, 3, 3)).astype(np.float32))
    dense = Tensor(rng.standard_normal((48, 48, 3, 3)).astype(np.float32))
    epsilon = Tensor(np.array([1e-6], np.float32))
    shared = ctypes.CDLL(str(loading.library()))
    results = []
    for threads in (1, 2, 5):
        shared.mindtwins_set_threads(threads)
        outputs = [
            *kernels.layer_norm_gradient(dy, x, gamma, epsilon),
            kernels.add_bias_gradient(dy, gamma),
            *kernels.depthwise_gradient(dy, x, weight),
            kernels.conv3x3(x, dense),
            *kernels.conv3x3_gradient(dy, x, dense),
        ]
        results.append([output.asnumpy() for output in outputs])
    shared.mindtwins_set_threads(loading._thread_count())
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float16, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_kernels_refuse_other_types(dtype):
    class GELU(nn.Cell):
        def construct(self, x):
            return kernels.gelu(x)

    with pytest.raises(RuntimeError, match=r"function\(gelu\) is 1"):
        GELU()(Tensor(np.ones(3, dtype))).asnumpy()
