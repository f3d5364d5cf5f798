"""Image files to RGB pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from PIL import Image
from tqdm import tqdm

from mindtwins.errors import UserError

# PIL loads its rarer formats when a file first needs them, and a second thread that arrives in the
# middle of that takes a good TIFF or WebP file for an unknown one. So load them all beforehand.
Image.init()


class UnreadableImage(Exception):
    """An image file is missing, empty, truncated or corrupt; the message says what PIL said."""


def read_rgb(path: str) -> Image.Image:
    """Decode a file to RGB as torchvision's default loader does.

    The EXIF orientation is not applied and transparency is dropped: the published accuracies were
    measured that way.

    Raises:
        UnreadableImage: whatever is wrong with the file.
    """
    try:
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB")
    # A damaged file surfaces as whatever the decoder meets first: OSError, SyntaxError, ValueError,
    # EOFError, struct.error, DecompressionBombError ... all of them mean the same here.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image format that PIL knows, or cut short"
        raise UnreadableImage(reason or type(error).__name__) from error


def read_picture(path: str) -> Image.Image:
    """As `read_rgb`, for a file that a user named: what is wrong is a UserError."""
    try:
        return read_rgb(path)
    except UnreadableImage as error:
        raise UserError(f"cannot read image {path} ({error})") from error


def read_pictures(
    paths: Iterable[str], skip_bad_images: bool = False
) -> Iterator[tuple[str, Image.Image]]:
    """Yield each path with its picture; one that cannot be read is told of, if not a UserError.

    Raises:
        UserError: not one of them can be read.
    """
    seen = readable = 0
    for path in paths:
        seen += 1
        try:
            picture = read_picture(path)
        except UserError as error:
            if not skip_bad_images:
                raise UserError(
                    f"{error}: repair or remove it, or pass --skip_bad_images"
                ) from error
            tqdm.write(f"notice: {error}; left out")
            continue
        readable += 1
        yield path, picture
    if seen and not readable:
        raise UserError("none of the images can be read")
