"""Scripts on terminals and with files whose names they cannot show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from tqdm import tqdm
from mindtwins.errors import UserError, run_cli

def main(argv):
    print(argv[0])
    tqdm.write(argv[0])
    if argv[1:]:
        raise UserError(argv[0])

run_cli(main)
"""


def run(argument: bytes | str, *more: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, argument, *more],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"\\u6d77\xe4"),
        ({"PYTHONIOENCODING": "cp1252"}, b"\\u6d77\xe4"),
        ({"PYTHONIOENCODING": "ascii"}, b"\\u6d77\\xe4"),
        ({"PYTHONIOENCODING": "utf-8"}, "海ä".encode()),
    ],
)
def test_names_that_a_terminal_cannot_show(environment: dict, shown: bytes) -> None:
    done = run("海ä", "fail", **environment)
    assert done.stdout == (shown + b"\n") * 2
    assert done.stderr == b"error: " + shown + b"\n" and done.returncode == 1


def test_an_ascii_locale() -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("海".encode(), **environment)
    # The argument is three bytes to Python then, not one character.
    assert done.returncode == 0 and done.stdout.count(b"\n") == 2 and done.stderr == b""


def test_names_that_are_not_utf_8() -> None:
    done = run(b"\xe9t\xe9.jpg", PYTHONIOENCODING="utf-8")
    assert done.stdout == b"\\udce9t\\udce9.jpg\n" * 2 and done.stderr == b""
