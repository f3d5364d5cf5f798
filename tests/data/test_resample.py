"""The C++ resize against Pillow, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from mindtwins.data import resample
from mindtwins.data.resample import available, resize_part

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@pytest.fixture(params=["C++", "Pillow"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow":
        monkeypatch.setattr(resample, "_pass_order", lambda: None)
    elif not available():
        pytest.skip("resample.cpp is not built")


def cases(count: int) -> Iterator[tuple[Image.Image, tuple[int, int], tuple[int, int, int, int]]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        source, target = rng.integers(1, 150, (2, 2)).tolist()
        pixels = rng.integers(0, 256, (source[1], source[0], 3), dtype=np.uint8)
        left, top = (int(rng.integers(side)) for side in target)
        right, bottom = (
            int(rng.integers(left, target[0])) + 1,
            int(rng.integers(top, target[1])) + 1,
        )
        yield Image.fromarray(pixels), tuple(target), (left, top, right, bottom)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("resampling", [BICUBIC, BILINEAR])
def test_equal_to_pillow(resampling: Image.Resampling) -> None:
    for image, size, box in cases(150):
        expected = np.asarray(image.resize(size, resampling).crop(box))
        found = resize_part(image, size, box, resampling)
        np.testing.assert_array_equal(found, expected, err_msg=f"{image.size} to {size}, {box}")


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("size", [(341, 256), (256, 512), (60, 40), (640, 427), (1280, 900)])
def test_photographs(size: tuple[int, int], photographs: list[Image.Image]) -> None:
    box = (10, 5, size[0] - 7, size[1] - 3)
    for photograph in photographs:
        expected = np.asarray(photograph.resize(size, BICUBIC).crop(box))
        np.testing.assert_array_equal(resize_part(photograph, size, box, BICUBIC), expected)


@pytest.mark.skipif(not available(), reason="resample.cpp is not built")
def test_another_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow gives something else, its own code is used."""
    resize = Image.Image.resize

    def other(self: Image.Image, *arguments: object) -> Image.Image:
        return resize(self, *arguments).point(lambda level: level ^ 1)

    resample._pass_order.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "resize", other)
        assert not available()
    resample._pass_order.cache_clear()
    assert available()


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="no qemu-user")
@pytest.mark.skipif(not available(), reason="resample.cpp is not built")
def test_it_runs_on_a_processor_without_avx():
    """The file alone, since MindSpore does not; it compares itself with Pillow."""
    run = "import runpy, sys; assert runpy.run_path(sys.argv[1])['available']()"
    command = ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-c", run, resample.__file__]
    subprocess.run(command, check=True)
