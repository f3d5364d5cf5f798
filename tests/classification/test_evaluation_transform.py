"""The evaluation transform against torchvision's documented steps, restated with torch and PIL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mindtwins.classification.transforms import EvaluationTransform
from mindtwins.data.decode import read_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reference(path: Path, resize: int, crop: int) -> torch.Tensor:
    """Resize(resize, BICUBIC), CenterCrop(crop), ToTensor(), Normalize(MEAN, STD)."""
    with open(path, "rb") as file:
        image = Image.open(file)
        if image.mode == "I;16":  # which the original clips
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        image = image.convert("RGB")

    # Resize(int): the shorter edge becomes `resize`, the longer int(resize * longer / shorter).
    shorter, longer = sorted(image.size)
    new_longer = int(resize * longer / shorter)
    landscape = image.width > image.height
    image = image.resize(
        (new_longer, resize) if landscape else (resize, new_longer), Image.Resampling.BICUBIC
    )

    # ToTensor: bytes to float32, divided by 255, channels first.
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    # CenterCrop: first pads with zeros, the smaller half to the left and top ...
    height, width = tensor.shape[1:]
    pad_x, pad_y = max(crop - width, 0), max(crop - height, 0)
    tensor = torch.nn.functional.pad(
        tensor, (pad_x // 2, (pad_x + 1) // 2, pad_y // 2, (pad_y + 1) // 2)
    )
    # ... then cuts at round(margin / 2.0), half to even.
    height, width = tensor.shape[1:]
    top, left = round((height - crop) / 2.0), round((width - crop) / 2.0)
    tensor = tensor[:, top : top + crop, left : left + crop].to(torch.float32).div(255)

    # Normalize, in float32.
    mean, std = torch.tensor(MEAN).view(-1, 1, 1), torch.tensor(STD).view(-1, 1, 1)
    return tensor.sub(mean).div(std)


def exif_rotated(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    image.save(path, exif=exif)


def sixteen_bit(image: Image.Image, path: Path) -> None:
    array = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(array).save(path)
    assert Image.open(path).mode == "I;16"


def palette_with_transparency(image: Image.Image, path: Path) -> None:
    image.quantize(64).save(path, transparency=3)
    assert "transparency" in Image.open(path).info


def rgba(image: Image.Image, path: Path) -> None:
    image.putalpha(image.convert("L"))
    image.save(path)


WRITERS: dict[str, Callable[[Image.Image, Path], None]] = {
    "color.jpg": lambda image, path: image.save(path, quality=92),
    "subsampled.jpg": lambda image, path: image.save(path, quality=50, subsampling=2),
    "progressive.jpg": lambda image, path: image.save(path, progressive=True),
    "grayscale.jpg": lambda image, path: image.convert("L").save(path),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path),
    "exif.jpg": exif_rotated,
    "sixteen_bit.png": sixteen_bit,
    "palette.png": palette_with_transparency,
    "rgba.png": rgba,
    "lossless.webp": lambda image, path: image.save(path, lossless=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("photograph", [0, 1])
def test_bit_equal_for_every_kind_of_file(
    name: str, photograph: int, photographs: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](photographs[photograph].copy(), path)
    ours = EvaluationTransform(224, 224 / 256, MEAN, STD)(read_rgb(str(path)))
    assert (ours.dtype, ours.shape) == (np.float32, (3, 224, 224))
    np.testing.assert_array_equal(ours, reference(path, 256, 224).numpy())


SIZES = [
    (640, 427),  # landscape
    (301, 427),  # portrait
    (427, 427),
    (333, 257),  # odd
    (257, 333),
    (256, 299),  # the shorter side needs no resizing; margin 43
    (298, 256),  # margin 42: half to even matters
    (300, 256),
    (7, 5),  # tiny
    (1, 1),
    (3, 400),
]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("crop_pct", "resize"),
    [(0.875, 256), (0.9, 248), (1.0, 224), (1.25, 179)],  # the last one pads
)
def test_bit_equal_for_every_size(
    size: tuple[int, int],
    crop_pct: float,
    resize: int,
    photographs: list[Image.Image],
    tmp_path: Path,
) -> None:
    path = tmp_path / "picture.png"
    photographs[0].crop((0, 0, *size)).save(path)
    ours = EvaluationTransform(224, crop_pct, MEAN, STD)(read_rgb(str(path)))
    np.testing.assert_array_equal(ours, reference(path, resize, 224).numpy())
