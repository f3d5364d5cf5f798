"""Settings for all tests, and real pictures: crops of scikit-learn's two photographs."""

import os

from mindtwins.huge_pages import with_huge_pages

# Before torch is loaded: its idle threads would otherwise spin on the cores that MindSpore needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Else a script's start in this process would begin pytest anew (see `mindtwins.huge_pages`).
os.environ |= with_huge_pages(os.environ)

import ctypes
import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mindspore as ms
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from mindtwins import console
from mindtwins.data import notices
from mindtwins.data.image_folder import ImageFolder
from mindtwins.models.variants import VARIANTS, Variant

PILLOW_S_LIMIT = Image.MAX_IMAGE_PIXELS


def pytest_collection_finish() -> None:
    """What has been imported by now stays, and need not be looked through again and again.

    MindSpore collects garbage before it compiles a graph: a quarter of a second with all tests.
    """
    gc.freeze()


@pytest.fixture(autouse=True)
def same_start():
    """Every test starts in graph mode, with the same seed and Pillow's own limit of pixels."""
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    Image.MAX_IMAGE_PIXELS = PILLOW_S_LIMIT


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back():
    """What a module's models took is the system's again: two processes run the suite for long."""
    yield
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list]:
    """The notices so far, of which none has been given before the test."""
    monkeypatch.setattr(notices, "_told", bytearray(len(notices._told)))
    monkeypatch.setattr(console.notices, "disabled", False)
    return lambda: [r.getMessage() for r in caplog.records if r.name == console.notices.name]


@pytest.fixture
def pcpvt_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PCPVT that compiles in seconds, as `svt_tiny` does."""
    from mindtwins.reference import twins as reference_twins

    row = ("pcpvt", (32, 64, 96, 128), (1, 2, 3, 4), (4, 4, 4, 4), (1, 1, 2, 1))
    monkeypatch.setitem(VARIANTS, "pcpvt_tiny", Variant(*row))
    monkeypatch.setitem(reference_twins._TABLE, "pcpvt_tiny", row)


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Two RGB photographs of 640 x 427 pixels."""
    return [Image.fromarray(array) for array in load_sample_images().images]


@pytest.fixture(scope="session")
def jpeg_folder(photographs: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty JPEGs of different sizes in three class folders. Tests must not change it."""
    root = tmp_path_factory.mktemp("jpegs")
    rng = np.random.default_rng(0)
    for number in range(30):
        width, height = int(rng.integers(60, 120)), int(rng.integers(60, 120))
        left, top = int(rng.integers(0, 500)), int(rng.integers(0, 300))
        crop = photographs[number % 2].crop((left, top, left + width, top + height))
        folder = root / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        crop.save(folder / f"{number:02d}.jpg", quality=90)
    return root


@pytest.fixture
def jpegs(jpeg_folder: Path) -> ImageFolder:
    """The thirty JPEGs as a data set."""
    return ImageFolder(jpeg_folder)


@pytest.fixture(scope="session")
def timm_module() -> Callable[[str], ModuleType]:
    """Load one file of timm's data package by itself: importing timm needs torchvision."""
    package = importlib.util.find_spec("timm")
    if package is None:
        pytest.skip("timm is not installed")

    def load(name: str) -> ModuleType:
        path = Path(package.submodule_search_locations[0]) / "data" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"timm_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
