"""Scripts begin anew with huge pages, where the system gives them on request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mindtwins import huge_pages
from mindtwins.errors import run_cli

ROOT = Path(__file__).parents[1]
ON_REQUEST = huge_pages.policy() == "madvise"
HUGE = "glibc.malloc.hugetlb=1"

SCRIPT = """
import ctypes, json, os, sys
from mindtwins.errors import run_cli

def main(argv):
    take = ctypes.CDLL(None).malloc
    take.restype, take.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    ctypes.memset(ctypes.c_void_p(take(64 << 20)), 1, 64 << 20)
    with open("/proc/self/smaps_rollup") as lines:
        huge = next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))
    print(json.dumps([os.getpid(), sys.flags.utf8_mode, argv, dict(os.environ), huge >> 10]))

print("begun")
run_cli(main)
"""


def untold() -> dict[str, str]:
    """The environment of a script that finds this tree, without a word to the C library."""
    told = os.environ | {"PYTHONPATH": str(ROOT)}
    return {name: value for name, value in told.items() if name != "GLIBC_TUNABLES"}


@pytest.fixture
def on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a system that gives huge pages to who asks, which is this one's in the test."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "SYSTEM", path)
    return path


def run(folder: Path, tunables: str | None, *options: str) -> tuple[int, list, int]:
    """The process number, what the script said, and how often it began."""
    (folder / "script.py").write_text(SCRIPT)
    environment = untold() if tunables is None else untold() | {"GLIBC_TUNABLES": tunables}
    process = subprocess.Popen(
        [sys.executable, *options, str(folder / "script.py"), "a b", "--c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    *begun, said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0
    return process.pid, json.loads(said), len(begun)


@pytest.mark.skipif(not ON_REQUEST, reason="this system gives huge pages to all or to none")
def test_a_script_asks_for_them(tmp_path: Path):
    """The same process with the same arguments and options of Python; most of 64 MB is huge."""
    pid, said, begun = run(tmp_path, None, "-X", "utf8")
    assert said[:3] == [pid, 1, ["a b", "--c"]] and begun == 2
    assert said[3]["GLIBC_TUNABLES"] == HUGE
    assert said[4] >= 60
    assert run(tmp_path, "glibc.malloc.hugetlb=0")[1][4] == 0  # what the first is compared with


@pytest.mark.parametrize("tunables", ["glibc.malloc.hugetlb=0", f"glibc.malloc.check=0:{HUGE}"])
def test_who_has_said_how_is_left_alone(tunables: str, tmp_path: Path):
    _, said, begun = run(tmp_path, tunables)
    assert said[3]["GLIBC_TUNABLES"] == tunables and begun == 1


def test_other_settings_stay():
    assert huge_pages.with_huge_pages({"A": "1", "GLIBC_TUNABLES": "glibc.malloc.check=0"}) == {
        "A": "1",
        "GLIBC_TUNABLES": f"glibc.malloc.check=0:{HUGE}",
    }


@pytest.mark.usefixtures("on_request")
def test_once_is_enough(monkeypatch: pytest.MonkeyPatch):
    """Where the new process is not told either: a Python with capabilities loses the variable."""
    monkeypatch.delenv("GLIBC_TUNABLES")
    begun = []

    def begin_anew(program: str, command: list[str], environment: dict[str, str]) -> None:
        begun.append(command)
        monkeypatch.setattr(os, "environ", environment | {"GLIBC_TUNABLES": ""})

    monkeypatch.setattr(os, "execve", begin_anew)
    for _ in range(2):
        huge_pages.restart_with_huge_pages()
    assert begun == [[sys.executable, *sys.orig_argv[1:]]]


def begin(script: str, system: Path, *paths: Path) -> tuple[str, str, int]:
    """What a script prints and says of mistakes on a system, and its exit code.

    Args:
        script: what it does after its imports.
        system: stands for `huge_pages.SYSTEM`.
        paths: where it finds modules before this tree.
    """
    program = f"""
    import os, pathlib, sys
    from mindtwins import huge_pages, interruptible
    from mindtwins.errors import run_cli
    huge_pages.SYSTEM = pathlib.Path(sys.argv[1])
    {script}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(system)],
        env=untold() | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.stdout, done.stderr, done.returncode


def test_a_debugged_script_is_left_alone(on_request: Path):
    said = 'run_cli(lambda argv: print(os.environ.get("GLIBC_TUNABLES")))'
    assert begin(f"sys.settrace(lambda *_: None); {said}", on_request) == ("None\n", "", 0)
    assert begin(said, on_request) == (f"{HUGE}\n", "", 0)  # what it is compared with


def test_an_interrupt_while_python_starts_again(on_request: Path, tmp_path: Path):
    """Is one line, as it is later: Python's own answer would be a traceback."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "if 'MINDTWINS_BEGUN_ANEW' in os.environ:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    found = begin("run_cli(lambda argv: print('not interrupted'))", on_request, tmp_path)
    assert found == ("", "interrupted\n", 130)


@pytest.mark.parametrize("system", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_nothing_begins_anew_for_nothing(
    system: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where all memory is huge, none can be, or the system knows of none."""
    if system is not None:
        (tmp_path / "enabled").write_text(system)
    monkeypatch.setattr(huge_pages, "SYSTEM", tmp_path / "enabled")
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("began anew"))
    called = []
    run_cli(called.append)
    assert called == [sys.argv[1:]]
