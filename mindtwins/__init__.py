"""Twins vision transformers (PCPVT and SVT) on MindSpore, with the answers of PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each name is. Not imported here: importing a part that does without MindSpore must not
# import MindSpore, whose cluster has to be described in the environment beforehand.
_MODULES = {
    "create_model": "mindtwins.tasks",
    "list_models": "mindtwins.models.variants",
    "create_detector": "mindtwins.tasks",
    "list_detectors": "mindtwins.tasks",
    "create_segmentor": "mindtwins.tasks",
    "list_segmentors": "mindtwins.tasks",
    "load_model": "mindtwins.tasks",
    "load_onnx": "mindtwins.tasks",
    "push_to_hub": "mindtwins.tasks",
    "save_pretrained": "mindtwins.tasks",
}

__all__ = [
    "__version__",
    "create_detector",
    "create_model",
    "create_segmentor",
    "list_detectors",
    "list_models",
    "list_segmentors",
    "load_model",
    "load_onnx",
    "push_to_hub",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        # Kept, so that it is looked for once.
        return globals().setdefault(name, getattr(import_module(_MODULES[name]), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
