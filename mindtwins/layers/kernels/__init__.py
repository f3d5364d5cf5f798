"""C++ kernels for the CPU, built at installation where there is a compiler.

Each operator of the table in `operators.py` is a MindSpore primitive here: `kernels.layer_norm(x,
gamma, beta, epsilon)`. Where no library was built, or none for this processor, they are None,
layers use their plain formulation, and `status` says why.
"""

from typing import TYPE_CHECKING

from mindtwins.layers.kernels.loading import available, status
from mindtwins.layers.kernels.operators import OPERATORS, primitive

__all__ = ["OPERATORS", "available", "status", *OPERATORS]

# Into the dictionary of this module, since that is where MindSpore's compiler looks for a name: a
# `__getattr__` is not asked.
globals().update({name: primitive(name) for name in OPERATORS})

# A type checker does not see them.
if TYPE_CHECKING:

    def __getattr__(name: str): ...
