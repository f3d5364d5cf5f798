from __future__ import annotations

import logging
import mmap
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mindtwins.classification.loader import build_evaluation_loader
from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data import notices
from mindtwins.data.decode import picture_size, read_rgb
from mindtwins.data.image_folder import ImageFolder
from mindtwins.data.loader import LoaderOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hooked(told: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """As `told`; pytest takes the place of what shows warnings."""
    monkeypatch.setattr(warnings, "showwarning", notices.tell_warning)
    warnings.simplefilter("always")
    return told


def palettes(folder: Path, photograph: Image.Image, *names: str) -> list[str]:
    for name in names:
        small = photograph.resize((60, 40)).quantize(16)
        small.save(folder / name, transparency=bytes([0] * 4 + [255] * 12))
    return [str(folder / name) for name in names]


def test_a_kind_is_told_once(told: Callable) -> None:
    for kind in ("a", "b", "a"):
        notices.tell_once(kind, f"of kind {kind}")
    notices.tell("always")
    assert told() == ["notice: of kind a", "notice: of kind b", "notice: always"]


@pytest.mark.parametrize("processes", [False, True])
def test_workers_tell_once_in_all(
    processes: bool, tmp_path: Path, capfd: pytest.CaptureFixture, told: Callable
) -> None:
    (tmp_path / "a").mkdir()
    for number in range(8):
        Image.new("I;16", (40, 40), 4000).save(tmp_path / "a" / f"{number}.png")
    transform = EvaluationTransform(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    notices._told = mmap.mmap(-1, len(notices._told))
    logging.getLogger().addHandler(handler := logging.StreamHandler(sys.stderr))
    try:
        for _ in range(2):  # workers end with a pass, and others come
            loader = build_evaluation_loader(
                ImageFolder(tmp_path),
                transform,
                batch_size=1,
                options=LoaderOptions(num_parallel_workers=2, python_multiprocessing=processes),
            )
            assert len(list(loader)) == 8
    finally:
        logging.getLogger().removeHandler(handler)
    assert capfd.readouterr().err.count("its largest value is 4000 of 65535") == 1


def test_pillow_s_warnings_name_the_file(
    hooked: Callable, photographs: list[Image.Image], tmp_path: Path
) -> None:
    for path in palettes(tmp_path, photographs[0], "a.png", "b.png"):
        assert read_rgb(path).mode == "RGB"
    (notice,) = hooked()
    assert notice.startswith(f"notice: {tmp_path}/a.png: PIL warns: Palette images with Transp")


def test_of_headers_alone(
    hooked: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    assert picture_size(str(tmp_path / "x.png")) == (40, 30)
    (notice,) = hooked()
    assert f"{tmp_path}/x.png: PIL warns: Image size (1200 pixels)" in notice


def test_texts_that_differ_are_one_kind(hooked: Callable, tmp_path: Path) -> None:
    for number, cut in enumerate((4, 6)):
        with notices.about_file(tmp_path / f"{number}.tif"):
            for _ in range(2):
                warnings.warn(f"expecting 12 bytes but only got {cut}", stacklevel=1)
    (notice,) = hooked()
    assert "0.tif: data warns: expecting 12 bytes but only got 4" in notice


def test_no_line_of_source_is_shown(photographs: list[Image.Image], tmp_path: Path) -> None:
    paths = palettes(tmp_path, photographs[1], "a.png", "b.png", "c.png")
    code = "import sys\nfrom mindtwins.data.decode import read_rgb\n"
    code += "for path in sys.argv[1:]: read_rgb(path)\n"
    code += "import warnings; warnings.warn('about no file')"
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith(f"notice: {paths[0]}: PIL warns: ")
    assert second.endswith("UserWarning: about no file")  # warnings of others are as they were
