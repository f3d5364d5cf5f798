"""Convert a PyTorch checkpoint of a Twins model to MindSpore.

The same as `mindtwins convert`; --help lists the options.
"""

from __future__ import annotations

from mindtwins import interruptible  # noqa: F401
from mindtwins.commands.convert import main
from mindtwins.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
