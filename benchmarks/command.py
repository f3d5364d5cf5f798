"""What all commands share: options, and tables that can be pasted into the documentation."""

from __future__ import annotations

import argparse
import sys

from mindtwins.cli import Parser

FIRST_WIDTH = 48


def parser(description: str, devices: bool = True) -> Parser:
    """A command line with the options that mean the same everywhere."""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="tiny sizes: does the command work?")
    if devices:
        made.add_argument("--device_target", choices=("CPU", "GPU", "Ascend"), default="CPU")
        made.add_argument(
            "--torch_python",
            default=sys.executable,
            help="the interpreter to run PyTorch with, such as one whose PyTorch has CUDA",
        )
    return made


class Table:
    """A Markdown table, printed row by row as it comes.

    Args:
        title: a line above.
        columns: their names; the first column is text.
        width: of the other columns at least.
    """

    def __init__(self, title: str, *columns: str, width: int = 8) -> None:
        self._widths = [FIRST_WIDTH, *(max(width, len(column)) for column in columns[1:])]
        print(f"\n{title}\n")
        self.row(*columns)
        self.row("---", *["--:"] * (len(columns) - 1))

    def row(self, *cells: str) -> None:
        """Print a row, its columns aligned."""
        first, *others = zip(cells, self._widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print(f"| {' | '.join(aligned)} |", flush=True)
