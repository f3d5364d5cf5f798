"""What happens to a program whose output cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from mindtwins.errors import run_cli
def main(argv):
    for number in range(3):
        print("line", number, "\u6d77\u72f8", flush=True)
    open(argv[0], "w").write("done")
run_cli(main)
"""


def run(target: int | None, tmp_path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "result")],
        stdout=target or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_loses_the_output_only(tmp_path, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(writer, tmp_path, PYTHONUNBUFFERED=unbuffered, PYTHONIOENCODING="utf-8")
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result").read_text() == "done"


def test_a_full_output_is_told_once(tmp_path):
    with open("/dev/full", "w") as full:
        done = run(full.fileno(), tmp_path, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0
    assert done.stderr == "notice: standard output cannot be written (No space left on device)\n"
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_terminal_lacks_are_escaped(tmp_path, encoding):
    done = run(None, tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout.startswith("line 0 \\u6d77\\u72f8\n")
