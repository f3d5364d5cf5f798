"""From a request to a picture, within limits; what is refused is told with a status of HTTP."""

from __future__ import annotations

import io

from fastapi import Request
from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import create_form_parser

from mindtwins.data.decode import UnreadableImage, decode_rgb

# The form field of the picture.
FIELD = "image"
FORM = "multipart/form-data"

# Up to how many times the limit a request is read to its end, to be refused then.
READ_ON = 5

# What strangers may send, as Pillow calls it. Not all that it reads: PostScript, for one, is a
# program, which it would run.
_FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"}
FORMATS = sorted(_FORMATS & set(Image.OPEN))


class Refusal(Exception):
    """A request that gets no prediction.

    Attributes:
        status: of HTTP.
        message: one sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def read_picture_file(request: Request, max_bytes: int) -> bytes:
    """The file in a request: its whole body, or the field `image` of a form.

    Raises:
        Refusal: there is none, or the request is too large, which is known from its header, or when
            that many bytes have come.
        ClientGone: the client went away.
    """
    body = await _read_body(request, max_bytes)
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith(FORM):
        body = _file_of_form(content_type, body)
    if not body:
        raise Refusal(400, f"there is no picture: send one as the body, or as form field {FIELD}")
    return body


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    One that is too large by little is read on and forgotten: few clients see an answer that comes
    while they send. Those that wait for leave to send get it at once.
    """
    too_large = Refusal(413, f"the request is larger than {max_bytes / 1e6:g} MB")
    stated = request.headers.get("content-length", "")
    length = int(stated) if stated.isdigit() else 0
    if length > READ_ON * max_bytes or (length > max_bytes and "expect" in request.headers):
        raise too_large
    body, received, has_more = bytearray(), 0, True
    while has_more and received <= READ_ON * max_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk, has_more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received <= max_bytes:
            body += chunk
    if received > max_bytes:
        raise too_large
    return bytes(body)


def _file_of_form(content_type: str, body: bytes) -> bytes:
    """The content of the form's field; empty if it has none."""
    found: list[bytes] = []

    def take(part) -> None:
        if part.field_name == FIELD.encode():
            part.file_object.seek(0)
            found.append(part.file_object.read())

    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")},
            on_field=lambda part: None,
            on_file=take,
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},  # nothing goes to the disk
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"the form cannot be read ({error})") from error
    return found[0] if found else b""


def decode(content: bytes, max_pixels: int, exif_orientation: bool) -> Image.Image:
    """The RGB picture in a file that was sent.

    Args:
        max_pixels: what `mindtwins.data.decode.limit_pixels` was told, for the message.

    Raises:
        Refusal: it is no picture, a damaged one, or has too many pixels.
    """
    try:
        return decode_rgb(io.BytesIO(content), "a picture sent", exif_orientation, FORMATS)
    except UnreadableImage as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise Refusal(413, f"the picture has more than {max_pixels} pixels") from error
        if isinstance(error.__cause__, Image.UnidentifiedImageError):
            known = ", ".join(FORMATS)
            raise Refusal(415, f"this is no picture that can be read here ({known})") from error
        raise Refusal(415, f"the picture is damaged ({error})") from error
