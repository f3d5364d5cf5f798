"""Segmenting image files: what is written, and what is refused before anything is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn
from PIL import Image

from mindtwins.errors import UserError
from mindtwins.segmentation import transforms
from mindtwins.segmentation.inference import predict_labels
from mindtwins.segmentation.predict import describe, segment
from mindtwins.segmentation.variants import create_segmentor

NAMES = ("wall", "sky", "tree", "lamp", "door")
TRANSFORM = transforms.TestTransform((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), scale=(64, 48))

Save = Callable[..., Path]


@pytest.fixture
def save(photograph: np.ndarray, tmp_path: Path) -> Save:
    """Write a part of a photograph, 80 x 60 pixels unless told, under a name in tmp_path."""

    def write(name: str, width: int = 80, height: int = 60) -> Path:
        Image.fromarray(photograph[:height, :width]).save(tmp_path / name)
        return tmp_path / name

    return write


def unused(images: Tensor) -> Tensor:
    """The model of those who must not come as far as using it."""
    raise AssertionError("the model was called")


def by_color(images: np.ndarray) -> np.ndarray:
    """A model without weights, for what does not depend on them: classes by bright and dark."""
    colors = images[:, :, ::4, ::4] - images.mean((2, 3), keepdims=True)
    return np.concatenate([colors, -colors[:, : len(NAMES) - 3]], 1)


def random_segmentor(picture: Path) -> nn.Cell:
    """A tiny one, always the same, whose classes change from place to place."""
    model = create_segmentor("fpn_svt_tiny", len(NAMES)).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():
        if parameter.ndim > 1:
            values = rng.normal(size=parameter.shape) / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.set_data(Tensor(values.astype(np.float32)))
    # No class is ahead of the others on the whole picture.
    (view,) = TRANSFORM(Image.open(picture))
    means = model(Tensor(view[None])).asnumpy().mean(axis=(0, 2, 3))
    model.decode_head.conv_seg.bias.set_data(Tensor(-means))
    return model


@pytest.mark.slow
def test_labels_overlays_and_shares(save: Save, tmp_path: Path) -> None:
    files = [save("a.png"), save("b.jpg", 40, 30)]
    model = random_segmentor(files[0])
    results = list(segment(model, TRANSFORM, files, NAMES, tmp_path / "new" / "out"))
    for file, result in zip(files, results, strict=True):
        picture = Image.open(file)
        expected = predict_labels(
            lambda images: model(Tensor(images)).asnumpy(),
            [view[None] for view in TRANSFORM(picture)],
            (picture.height, picture.width),
        )[0]
        stem = tmp_path / "new" / "out" / file.stem
        assert result["file"] == str(file)
        assert result["labels"] == f"{stem}_labels.png"
        assert result["overlay"] == f"{stem}_overlay.png"
        labels = Image.open(result["labels"])
        assert labels.mode == "L" and labels.size == picture.size
        np.testing.assert_array_equal(np.asarray(labels), expected)
        overlay = Image.open(result["overlay"])
        assert overlay.mode == "RGB" and overlay.width > picture.width
        counts = {NAMES[c]: np.mean(expected == c) for c in np.unique(expected)}
        assert len(counts) > 1
        assert result["shares"] == pytest.approx(counts)
        assert list(result["shares"].values()) == sorted(counts.values(), reverse=True)
        largest, share = next(iter(result["shares"].items()))
        line = f"{file}: {largest} {100 * share:.1f} % -> {result['overlay']}"
        assert describe(result, 1) == line
    assert len(list((tmp_path / "new" / "out").iterdir())) == 4


@pytest.mark.parametrize("name", ["photo_labels.png", "photo_overlay.png"])
def test_an_image_is_not_overwritten(name: str, save: Save, tmp_path: Path) -> None:
    files = [save("photo.png"), save(name)]
    before = files[1].read_bytes()
    folder = tmp_path / "x" / ".."  # the same place under another name
    with pytest.raises(UserError, match=rf"photo\.png would overwrite the image .*/{name}: give"):
        segment(unused, TRANSFORM, files, NAMES, folder)
    assert files[1].read_bytes() == before and sorted(tmp_path.iterdir()) == sorted(files)


def test_two_images_of_one_name(save: Save, tmp_path: Path) -> None:
    files = [save("a.jpg"), save("a.png")]
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would both be written to .*a_labels"):
        segment(unused, TRANSFORM, files, NAMES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["notes.txt", "notes.txt/out"])
def test_the_folder_cannot_be_made(folder: str, save: Save, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no folder")
    with pytest.raises(
        UserError, match=rf"cannot create the folder .*/{folder} \(.*: give another"
    ):
        segment(unused, TRANSFORM, [save("a.png")], NAMES, tmp_path / folder)


def test_images_too_small_for_the_model(save: Save, tmp_path: Path) -> None:
    narrow = save("narrow.png", 200, 60)  # 64 x 19 in the model
    with pytest.raises(UserError) as caught:
        segment(unused, TRANSFORM, [save("a.png"), narrow], NAMES, tmp_path / "out")
    assert str(caught.value) == (
        f"{narrow} is 200 x 60 pixels, 64 x 19 after resizing, but the model needs 32 on each "
        "side: crop the image closer to a square, or raise resize_scale or test_ratios"
    )
    assert not (tmp_path / "out").exists()
    several = transforms.TestTransform((0.5,) * 3, (0.5,) * 3, scale=(64, 48), ratios=(1.0, 0.5))
    with pytest.raises(UserError, match=r"a\.png is 80 x 60 pixels, 32 x 24 after resizing"):
        segment(unused, several, [save("a.png")], NAMES, tmp_path / "out")


def test_unreadable_images_are_found_first(save: Save, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(UserError, match=r"cannot read image .*b\.png \(not an image format"):
        segment(unused, TRANSFORM, [save("a.png"), tmp_path / "b.png"], NAMES, tmp_path / "out")


def test_photographs_may_be_turned(save: Save, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = save("upright.png")
    stored = tmp_path / "stored.png"
    Image.open(upright).transpose(Image.Transpose.ROTATE_90).save(stored, exif=exif)
    for turned, size in ((False, (60, 80)), (True, (80, 60))):
        folder = tmp_path / str(turned)
        files = [upright, stored]
        results = segment(by_color, TRANSFORM, files, NAMES, folder, exif_orientation=turned)
        first, second = (Image.open(result["labels"]) for result in results)
        assert second.size == size
        assert (first.tobytes() == second.tobytes()) == turned


def test_label_files_of_odd_names(save: Save, tmp_path: Path) -> None:
    save("a.png").rename(tmp_path / os.fsdecode(b"\xe9.png"))
    (file,) = tmp_path.glob("*.png")
    (result,) = segment(by_color, TRANSFORM, [file], NAMES, tmp_path / "out")
    json.dumps(result)
    assert os.fsencode(result["overlay"]).endswith(b"out/\xe9_overlay.png")
    assert Path(result["overlay"]).exists()
