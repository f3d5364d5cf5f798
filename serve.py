"""Answer predictions over HTTP, with a checkpoint or an exported ONNX file.

The same as `mindtwins serve`; --help lists the options.
"""

from __future__ import annotations

from mindtwins import interruptible  # noqa: F401
from mindtwins.commands.serve import main
from mindtwins.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
