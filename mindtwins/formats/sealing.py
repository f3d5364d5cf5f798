"""The seal of the project's checkpoints: what makes a flipped bit or a cut visible.

MindSpore's own loader lets a flipped bit pass in both formats, and a `.ckpt` cut between two
records even with its crc check. So each file carries a text (the metadata) under `METADATA_KEY`
and, under `DIGEST_KEY`, the SHA-256 of all its other bytes. The two keys sit in different places,
so no single damage removes both: a file with one of them and without a matching digest is damaged,
and only a file with neither is somebody else's.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

METADATA_KEY = "mindtwins.metadata"
DIGEST_KEY = "mindtwins.sha256"
DIGEST_LENGTH = 64

DAMAGED = "its content does not match its checksum: the file is damaged or was cut short"


class HashingWriter:
    """Writes to a file and hashes what it writes, both at a time; a context manager."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self._executor = ThreadPoolExecutor(1)

    def __enter__(self) -> HashingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()

    def write(self, data: bytes | memoryview) -> None:
        # hashlib lets other threads run while it works on large data.
        hashing = self._executor.submit(self._hash.update, data)
        self._file.write(data)
        hashing.result()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
