"""pycocotools, which is imported where it is used: inference of boxes needs none of it."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from types import ModuleType

from mindtwins.errors import UserError


def cocotools(module: str) -> ModuleType:
    """Return the module `pycocotools.MODULE`.

    Raises:
        UserError: pycocotools is not installed.
    """
    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ImportError as error:
        raise UserError(
            "COCO's masks and scores are computed by pycocotools: pip install pycocotools"
        ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what pycocotools prints of its progress from the standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
