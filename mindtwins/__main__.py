"""The console command: `mindtwins train -c configs/svt_tiny_digits.yaml`, or `python -m mindtwins`.

Each command is a module of `mindtwins/commands`, and what the script of that name runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from mindtwins import __version__, errors, interruptible  # noqa: F401
from mindtwins.cli import nearest
from mindtwins.distribution import launch
from mindtwins.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command: what it does in a few words, the script that is the same, and how it runs."""

    does: str
    script: str
    run: Callable[[Callable[[list[str]], None]], None] = launch.run_cli


COMMANDS = {
    "train": Command("train a model by a recipe", "train.py"),
    "validate": Command("evaluate a checkpoint", "validate.py"),
    "infer": Command("classify or segment images", "infer.py"),
    "serve": Command("answer predictions over HTTP", "serve.py", errors.run_cli),
    "export": Command("checkpoint to ONNX or MindIR", "export.py", errors.run_cli),
    "convert": Command("PyTorch checkpoint to MindSpore", "convert/pt2ms.py", errors.run_cli),
    "convert-back": Command("MindSpore checkpoint to PyTorch", "convert/ms2pt.py", errors.run_cli),
}


def run() -> None:
    """Run the command that the first argument names, with the rest of the arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        errors.run_cli(_answer)
        return
    sys.argv[:2] = [f"mindtwins {name}"]
    module = f"mindtwins.commands.{name.replace('-', '_')}"
    # Imported within, so that a mistake or an interrupt on the way is told like any other.
    COMMANDS[name].run(lambda argv: import_module(module).main(argv))


def _answer(argv: list[str]) -> None:
    """What there is, or which command was meant."""
    name = argv[0] if argv else "--help"
    if name == "--version":
        print(f"mindtwins {__version__}")
    elif name in ("-h", "--help"):
        print(overview())
    else:
        raise UserError(
            f"there is no command {nearest(name, list(COMMANDS))}: see mindtwins --help"
        )


def overview() -> str:
    """The commands, a line each."""
    width = max(len(name) for name in COMMANDS)
    rows = [
        f"  {name:<{width}}  {command.does} (in the repository: python {command.script})"
        for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: mindtwins COMMAND [options]; mindtwins COMMAND --help lists the options",
            "",
            *rows,
        ]
    )


if __name__ == "__main__":
    run()
