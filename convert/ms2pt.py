"""Convert a checkpoint of this project back to PyTorch, bit for bit.

The same as `mindtwins convert-back`; --help lists the options.
"""

from __future__ import annotations

from mindtwins import interruptible  # noqa: F401
from mindtwins.commands.convert_back import main
from mindtwins.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
