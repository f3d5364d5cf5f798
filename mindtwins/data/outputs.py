"""Where pictures go that are drawn of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mindtwins.errors import UserError


def derived_files(
    files: Sequence[Path], folder: Path, endings: Sequence[str], doing: str
) -> dict[Path, tuple[Path, ...]]:
    """The files that are to be written for each image: in the folder, its name with the endings.

    Args:
        files: the images.
        endings: such as "_overlay.png".
        doing: what is done with an image, as the message begins.

    Raises:
        UserError: one of them is an image itself, or is another image's.
    """
    images = {file.resolve(): file for file in files}
    sources: dict[Path, Path] = {}
    found = {}
    for file in files:
        found[file] = tuple(folder / f"{file.stem}{ending}" for ending in endings)
        for target in found[file]:
            resolved = target.resolve()
            if resolved in images:
                raise UserError(
                    f"{doing} {file} would overwrite the image {images[resolved]}: give another "
                    "output_dir, or take that image away"
                )
            if resolved in sources:
                raise UserError(
                    f"{sources[resolved]} and {file} would both be written to {target}: rename one "
                    "of them"
                )
            sources[resolved] = file
    return found


def create_folder(folder: Path) -> None:
    """Create a folder for results, unless it is there.

    Raises:
        UserError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the folder {folder} ({error.strerror}): give another output_dir"
        ) from error
