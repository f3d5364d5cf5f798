"""scikit-learn's handwritten digits as image files, so that a demo takes ImageNet's own path."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mindtwins.errors import UserError

SIZE = 32
VAL_EVERY = 5
NUM_IMAGES = 1797


def write_digits(folder: str | os.PathLike[str]) -> Path:
    """Write the digits data set as `folder/{train,val}/{0..9}/*.png`, unless it is there.

    The 1797 pictures of 8 x 8 pixels and 17 grey levels come with scikit-learn (the test part of
    UCI's "Optical Recognition of Handwritten Digits"). They are stored as 32 x 32 grey PNG files,
    enlarged bicubically, so that crops and shears need not move in steps of a source pixel. Every
    fifth picture of a class goes to val: 355 pictures, against 1442 in train.

    The folder appears whole or not at all, also when several processes write it at once.

    Args:
        folder: where to write; its parent folders are created.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists with other content, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        _check_complete(folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write_images(partial)
            partial.chmod(0o755)  # mkdtemp's folders are private
            partial.rename(folder)
        except OSError:
            # Another process was first: renaming onto a folder that is not empty fails.
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the digits to {folder}: {error.strerror}") from error
    return folder


def _check_complete(folder: Path) -> None:
    found = len(list(folder.glob("*/*/*.png")))
    if found != NUM_IMAGES:
        raise UserError(
            f"{folder} exists but holds {found} of the digits' {NUM_IMAGES} images: remove it or "
            "choose another folder"
        )


def _write_images(folder: Path) -> None:
    from sklearn.datasets import load_digits  # only the demo needs scikit-learn

    digits = load_digits()
    for split in ("train", "val"):
        for name in range(10):
            (folder / split / str(name)).mkdir(parents=True)
    seen = np.zeros(10, dtype=int)
    for number, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        seen[label] += 1
        split = "val" if seen[label] % VAL_EVERY == 0 else "train"
        picture = Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8))
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        picture.save(folder / split / str(label) / f"{number:04d}.png")
