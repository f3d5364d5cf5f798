"""The Twins models: what the paper defines, and nothing else."""

from mindtwins.models.variants import create_model, list_models

__all__ = ["create_model", "list_models"]
