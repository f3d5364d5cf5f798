"""Twins vision transformers (PCPVT and SVT) on MindSpore, with the answers of PyTorch."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # Not imported above: importing a part that does without MindSpore must not import MindSpore,
    # whose cluster has to be described in the environment beforehand.
    if name in ("create_model", "list_models"):
        from mindtwins import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
