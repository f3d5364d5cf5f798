"""The seal of an exported file: its last 64 bytes are the SHA-256 of all before, in hexadecimal.

ONNX and MindIR are messages whose last entry can be a text of the metadata: that is the seal, which
is found and checked without reading them. Other programs see one more entry.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from mindtwins.errors import UserError
from mindtwins.formats import identify

SEAL_KEY = "mindtwins.export.sha256"
PLACE = "0" * 64  # what stands there until the file is sealed


def seal(content: bytes) -> bytes:
    """Replace the place of the seal, with which the content ends.

    Raises:
        ValueError: it does not end with one.
    """
    if not content.endswith(PLACE.encode()):
        raise ValueError("the content does not end with the place of the seal")
    body = content[: -len(PLACE)]
    return body + _digest(body)


def check_seal(path: Path, content: bytes) -> None:
    """Raise a UserError for the content of a file that is not as this project wrote it."""
    if SEAL_KEY.encode() not in content:
        form = identify(io.BytesIO(content))
        seen = f" (it is {form.name})" if form is not None else ""
        raise UserError(
            f"{path} was not exported by MindTwins, or was cut short{seen}: such files are made of"
            " a checkpoint, by mindtwins export --ckpt_path CHECKPOINT --file_name"
            f" model{path.suffix}"
        )
    if content[-len(PLACE) :] != _digest(content[: -len(PLACE)]):
        raise UserError(
            f"{path} is not what was exported: it is damaged, was cut short or was changed by"
            " another program: export it again"
        )


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
