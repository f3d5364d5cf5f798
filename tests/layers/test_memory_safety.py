"""No kernel touches memory that is not its own, or leaves a number of its output unwritten."""

import os
import subprocess
import sys
from glob import glob
from pathlib import Path

import numpy as np
import pytest

from mindtwins.layers import kernels
from mindtwins.layers.kernels import loading
from mindtwins.layers.resize import _neighbor_table

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
EPSILON = np.array([1e-3], np.float32)
# What is watched, and the libraries of the compiler that watch it.
SANITIZERS = {
    "address,undefined": ("libasan.so", "libubsan.so"),
    "thread": ("libtsan.so",),
}


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def table(old: int, new: int) -> np.ndarray:
    return _neighbor_table(old, new).asnumpy()


def calls(batch: int, height: int, width: int, channels: int) -> list[tuple]:
    """Every operator and its inputs, of maps of this shape: sides are multiples of 3."""
    x, c, hidden = floats(batch, height, width, channels), floats(channels), channels + 9
    tokens = floats(batch * height * width, channels)
    windows = np.array([2, 3], np.int32)  # heads, and side
    count = height * width // 9
    mask = np.where(floats(1, count, 1, 9, 9) > 1, np.float32(-1000), np.float32(0))
    none = np.zeros(1, np.float32)
    wide = floats(batch, height, width, 6 * channels)
    narrow = floats(batch, height, width, 2 * channels)
    summary = floats(batch, 2, 3, 4 * channels)
    rows, columns = table(height, 2 * height - 1), table(width, width + 5)
    large = (batch, 2 * height - 1, width + 5)
    labels = RNG.integers(-1, channels, large, np.int32)
    levels = [floats(batch, height // k + 1, width // k + 1, channels) for k in (1, 2, 4, 8)]
    corners = RNG.uniform(-2, max(height, width) + 2, (7, 4))
    named = np.stack([RNG.integers(-1, batch + 1, 7), RNG.integers(-1, 5, 7)], 1)
    regions = np.concatenate([named, corners], 1).astype(np.float32)
    positive = np.abs(c) + 1
    return [
        ("add_bias", x, c),
        ("add_bias_gradient", x, c),
        ("gelu", x),
        ("gelu_gradient", x, x),
        ("relu", x),
        ("relu_gradient", x, x),
        ("dense", x, floats(hidden, channels), floats(hidden)),
        ("dense_gradient", floats(batch, height, width, hidden), x, floats(hidden, channels)),
        (
            "mlp",
            *(x, c, c, floats(hidden, channels), floats(hidden), floats(channels, hidden), c),
            EPSILON,
        ),
        *mlp_training(x, hidden),
        ("weight_gradient", floats(batch, height, width, hidden), x, floats(hidden, channels)),
        ("scale", x, floats(batch, channels)),
        ("layer_norm", x, c, c, EPSILON),
        ("layer_norm_gradient", x, x, c, EPSILON),
        ("moments", tokens),
        ("moments_gradient", c, c, tokens, c),
        ("normalize", tokens, c, positive, c),
        ("normalize_gradient", tokens, tokens, c, positive),
        ("sum_of_squares", x),
        ("window_attention", wide, mask, windows),
        ("window_attention", wide, none, windows),
        ("window_attention_gradient", narrow, wide, mask, windows),
        ("global_attention", narrow, summary, windows[:1]),
        ("global_attention_gradient", narrow, narrow, summary, windows[:1]),
        *branches(narrow, mask, windows),
        ("depthwise", x, floats(channels, 1, 3, 3), c),
        ("depthwise_gradient", x, x, floats(channels, 1, 3, 3)),
        ("conv3x3", x, floats(hidden, channels, 3, 3)),
        (
            "conv3x3_gradient",
            *(floats(batch, height, width, hidden), x, floats(hidden, channels, 3, 3)),
        ),
        ("swap_axes", floats(batch, height * width, channels)),
        ("gather_patches", x, floats(3, 3)),
        (
            "gather_patches_gradient",
            *(floats(batch, height // 3, width // 3, 9 * channels), floats(3, 3)),
        ),
        ("resize_bilinear", x, rows, columns),
        ("resize_bilinear_gradient", floats(*large, channels), x, rows, columns),
        ("cross_entropy", x, labels, rows, columns),
        ("cross_entropy_gradient", floats(*large[:2]), x, labels, rows, columns),
        ("roi_align", *levels, regions, floats(5, 5)),
        ("roi_align_gradient", floats(7, 5, 5, channels), *levels, regions),
    ]


def mlp_training(x: np.ndarray, hidden: int) -> list[tuple]:
    """An MLP and its gradient."""
    batch, *_, c = x.shape
    norm, factors, before = (floats(c), floats(c)), floats(batch), floats(*x.shape[:-1], hidden)
    first, second = (floats(hidden, c), floats(hidden)), (floats(c, hidden), floats(c))
    weights = first[0], second[0]
    return [
        ("mlp_training", x, *norm, *first, *second, factors, EPSILON),
        ("mlp_gradient", x, x, before, *norm, *weights, factors, EPSILON),
    ]


def branches(x: np.ndarray, mask: np.ndarray, windows: np.ndarray) -> list[tuple]:
    """Whole attention branches; `windows` of the mask, heads and side."""
    c = x.shape[-1]
    norm = floats(c), floats(c)
    q, kv, qkv, proj = ((floats(n, c), floats(n)) for n in (c, 2 * c, 3 * c, c))
    side = np.zeros((windows[1], windows[1]), np.float32)
    none = np.zeros(1, np.float32)
    subsampling = floats(c, c, 2, 2), floats(c), *norm
    return [
        ("window_branch", x, *norm, *qkv, *proj, mask, windows, side, EPSILON),
        ("window_branch", x, *norm, *qkv, *proj, none, windows, side[:2, :2], EPSILON),
        ("global_branch", x, *norm, *q, *kv, *proj, windows[:1], EPSILON),
        (
            "subsampled_branch",
            *(x, *norm, *q, *kv, *proj, *subsampling, windows[:1], EPSILON, EPSILON),
        ),
    ]


def write_calls(path: Path) -> None:
    """For maps that fill no whole vector, tile or block, of single numbers, and of none."""
    arrays = {}
    sizes = [(1, 3, 3, 1), (2, 6, 9, 20), (5, 3, 12, 33), (1, 21, 24, 70), (3, 9, 3, 16)]
    sizes += [(0, 6, 9, 20)]  # no image at all
    made = [case for size in sizes for case in calls(*size)]
    for number, (name, *inputs) in enumerate(made):
        row = kernels.OPERATORS[name]
        shapes = row.shape(*(array.shape for array in inputs))
        shapes = shapes if row.outputs > 1 else (shapes,)
        longest = max(map(len, shapes))
        key = f"{number}.{name}"
        arrays[f"{key}.shapes"] = [[*shape, *[-1] * (longest - len(shape))] for shape in shapes]
        arrays |= {f"{key}.{i}": array for i, array in enumerate(inputs)}
    assert {name for name, *_ in made} == kernels.OPERATORS.keys()
    np.savez(path, **arrays)


@pytest.fixture(scope="module")
def made_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "calls.npz"
    write_calls(path)
    return path


def run(*command: object, **environment: str) -> None:
    """The program ends well, or the test says what it said."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-6000:])


@pytest.mark.parametrize("build", loading.BUILDS)
def test_operators_keep_to_their_arrays(made_calls, build):
    library = loading.FOLDER / f"_kernels_{build}.so"
    if build not in loading.suitable(loading.__cpu_features__) or not library.exists():
        pytest.skip("no such build, or not for this processor")
    run(HERE / "operator_calls.py", library, made_calls)


@pytest.mark.endurance
@pytest.mark.parametrize("watched", SANITIZERS)
def test_sanitizers_find_nothing(made_calls, tmp_path, watched):
    """In a build of its own, whatever is wrong: addresses, arithmetic, races."""
    (build,) = loading.suitable(loading.__cpu_features__)[:1]
    flags = {"x86_64_v3": ["-march=x86-64-v3"], "x86_64_v4": ["-march=x86-64-v4"]}
    library = tmp_path / "kernels.so"
    compiler = ["g++", "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-pthread"]
    compiler += [f"-fsanitize={watched}", "-fno-sanitize-recover=all", *flags.get(build, [])]
    sources = sorted(glob(f"{loading.FOLDER}/*.cpp"))
    subprocess.run([*compiler, *sources, "-o", library], check=True)
    preloaded = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in SANITIZERS[watched]
    ]
    environment = {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # what Python keeps to its end
        "TSAN_OPTIONS": "exitcode=66",
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's own threads are not looked at
    }
    run(HERE / "operator_calls.py", library, made_calls, **environment)
    run(HERE / "product_checks.py", library, **environment)
