"""Processes that measure: what remains of failures, and what their environments leave out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import workers

ROOT = Path(__file__).parents[2]


def worker(folder: Path, script: str) -> workers.Worker:
    """One whose interpreter runs a shell script whatever it is asked."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return workers.Worker("torch_side", {}, str(python))


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'RuntimeError: no kernel'; echo at line 3 >&2; exit 1", "RuntimeError: no kernel"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("exit 3", "half a line"),
    ],
)
def test_a_worker_that_ends_says_why_after_what_it_had_answered(tmp_path, script, problem):
    answer = """read line; echo a warning; echo 'half a line @answer {"seconds": 0.5}'"""
    with worker(tmp_path, f"{answer}; read line; {script}") as stub:
        assert stub.ask("turn") == {"seconds": 0.5}
        with pytest.raises(workers.Failed, match=problem):
            stub.ask("turn")


def test_a_worker_that_was_lost_is_started_again(tmp_path):
    answer = """read line; echo "@answer {\\"process\\": $$}\""""
    with worker(tmp_path, f"{answer}; read line; kill -KILL $$") as stub:
        first = stub.ask("turn")
        with pytest.raises(workers.Failed, match="killed by SIGKILL"):
            stub.ask("turn")
        assert stub.ask("turn") != first


@pytest.mark.slow
def test_a_task_that_fails_leaves_the_worker_running():
    with workers.start("torch eager") as worker:
        with pytest.raises(workers.Failed, match="nowhere"):
            worker.ask("reference", model="svt_tiny", folder="/nowhere", weights=[])
        assert "CUDA" in worker.ask("environment")["found"]


def test_a_mistake_that_a_script_tells_is_its_reason():
    output = ["compiling", "error: cannot use device_target GPU: none", ""]
    assert workers.describe_failure(1, output) == "error: cannot use device_target GPU: none"
    assert workers.describe_failure(3, []) == "exit code 3"


def test_torch_is_kept_from_the_libraries_of_mindspore(monkeypatch):
    spec = workers.find_spec("mindspore")
    site = Path(spec.origin).parents[1]
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{site}/mindspore/lib:{site}/nvidia/x/lib:/usr/local/x")
    monkeypatch.setenv("PYTHONPATH", f"{site}")
    same, other = (workers.torch_environment(p) for p in (sys.executable, "/usr/bin/other"))
    assert same["LD_LIBRARY_PATH"] == other["LD_LIBRARY_PATH"] == "/usr/local/x"
    assert same["PYTHONPATH"] == f"{ROOT}:{site}"
    assert other["PYTHONPATH"] == str(ROOT)
