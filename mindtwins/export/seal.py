"""The seal of an exported file: its last 64 bytes are the SHA-256 of all before, in hexadecimal.

ONNX keeps its metadata at the end, and the seal is the last entry there: it is found and checked
without reading ONNX.
"""

from __future__ import annotations

import hashlib

SEAL_KEY = "mindtwins.export.sha256"
_LENGTH = 64


def seal(content: bytes) -> bytes:
    """Replace the 64 zeros that some content ends with.

    Raises:
        ValueError: it does not end with them.
    """
    if not content.endswith(b"0" * _LENGTH):
        raise ValueError("the content does not end with the place of the seal")
    body = content[:-_LENGTH]
    return body + _digest(body)


def is_intact(content: bytes) -> bool:
    """Whether sealed content is what it was."""
    return content[-_LENGTH:] == _digest(content[:-_LENGTH])


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
