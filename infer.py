"""Classify or segment images with a checkpoint.

The same as `mindtwins infer`; --help lists the options.
"""

from __future__ import annotations

from mindtwins import interruptible  # noqa: F401
from mindtwins.commands.infer import main
from mindtwins.distribution.launch import run_cli

if __name__ == "__main__":
    run_cli(main)
