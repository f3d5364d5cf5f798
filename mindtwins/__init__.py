"""Twins vision transformers (PCPVT and SVT) on MindSpore, with the answers of PyTorch."""

from mindtwins.models import create_model, list_models

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "list_models"]
