"""The same models in plain PyTorch: what the MindSpore models are compared with.

Only verification and tests import this package; nothing else of MindTwins needs torch.
"""

from mindtwins.reference.twins import create_reference

__all__ = ["create_reference"]
