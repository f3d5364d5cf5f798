"""The compiled kernels as a library: when they are used, and with how many threads."""

import ctypes

import numpy as np
import pytest
from mindspore import Tensor, nn

import mindtwins.layers
from mindtwins.layers import kernels
from mindtwins.layers.kernels import loading

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=kernels.status())


@pytest.fixture
def forget():
    """Let the library be looked for again, before and after."""
    loading._problem.cache_clear()
    yield
    loading._problem.cache_clear()


def test_status_says_why_the_kernels_are_not_used(forget, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "FILE", tmp_path / "absent.so")
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


def test_a_file_that_is_no_library_is_not_used(forget, monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(loading, "FILE", broken)
    assert not kernels.available()
    assert kernels.status().startswith("CPU kernels: not usable: ")


@needs_kernels
def test_status_says_where_the_kernels_are():
    assert kernels.status() == f"CPU kernels: active ({loading.FILE})"


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
    shared = ctypes.CDLL(str(loading.FILE))
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
    class BiasAndGELU(nn.Cell):
        def construct(self, x):
            return kernels.bias_gelu(x, x)

    with pytest.raises(RuntimeError, match=r"function\(bias_gelu\) is 1"):
        BiasAndGELU()(Tensor(np.ones(3, dtype))).asnumpy()
