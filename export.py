"""Export a checkpoint to ONNX or MindIR.

The same as `mindtwins export`; --help lists the options.
"""

from __future__ import annotations

from mindtwins import interruptible  # noqa: F401
from mindtwins.commands.export import main
from mindtwins.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
