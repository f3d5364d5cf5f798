"""The console command `mindtwins`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindtwins import __version__
from mindtwins.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


def mindtwins(*words: str, code: int = 0, cwd: Path = ROOT) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mindtwins", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed(words):
    output = mindtwins(*words)
    for name in COMMANDS:
        assert f"  {name} " in output


def test_version():
    assert mindtwins("--version") == f"mindtwins {__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each(name):
    output = mindtwins(name, "--help")
    assert f"mindtwins {name}" in output.splitlines()[0]
    assert "--ckpt_path" in output


def test_an_unknown_command_names_the_nearest():
    output = mindtwins("valdate", "--ckpt_path", "x.ckpt", code=1)
    assert output == (
        "error: there is no command 'valdate' (did you mean 'validate'?): see mindtwins --help\n"
    )


@pytest.mark.slow
def test_a_mistake_is_one_sentence(tmp_path):
    output = mindtwins("validate", "--ckpt_path", "x.ckpt", code=1, cwd=tmp_path)
    assert output.startswith("error: x.ckpt") and output.count("\n") == 1
    output = mindtwins("convert", "--pt_path", "x.pth", "--ckpt_path", "x.ckpt", code=1)
    assert output.startswith("error: x.pth") and output.count("\n") == 1
