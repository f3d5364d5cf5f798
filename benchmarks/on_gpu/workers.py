"""Processes that measure: started, fed, read line by line, ended in time.

MindSpore and PyTorch each get processes of their own: their memory pools, thread pools and CUDA
libraries would disturb each other's, and a crash takes no other measurement along. A worker reads
a request as JSON from its command line and prints each result, as soon as it has it, as a line of
JSON behind `MARK`; what it had found when it failed or ran out of time is kept.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARK = "@result "
LINES_KEPT = 400
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt)\b")


@dataclass
class Report:
    """What a worker found.

    Attributes:
        rows: its results.
        problem: why there are not more; "" if it came to its end.
    """

    rows: list[dict] = field(default_factory=list)
    problem: str = ""


def emit(**row: object) -> None:
    """In a worker: report a result."""
    print(MARK + json.dumps(row), flush=True)


def serve(tasks: dict[str, Callable[..., None]]) -> None:
    """In a worker: do the task that the command line names, with its JSON arguments."""
    _, name, arguments = sys.argv
    tasks[name](**json.loads(arguments))


def mindspore_environment() -> dict[str, str]:
    """For workers with MindSpore: this process's, and what it needs on every machine."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Code for a newer card than MindSpore knows is compiled when it is first used: what is not
    # used is not compiled, and what was is kept.
    defaults = {"GLOG_v": "3", "CUDA_MODULE_LOADING": "LAZY", "CUDA_CACHE_MAXSIZE": "4000000000"}
    return defaults | os.environ | {"PYTHONPATH": path}


def torch_environment(python: str) -> dict[str, str]:
    """For workers with PyTorch: without the CUDA 11 libraries that MindSpore is pointed to.

    A PyTorch with CUDA brings its own, and would find MindSpore's older NCCL under the same name.

    Args:
        python: the interpreter; if it is not this one, this one's PYTHONPATH is not for it.
    """
    environment = dict(os.environ)
    spec = find_spec("mindspore")
    site = str(Path(spec.origin).parents[1]) if spec and spec.origin else None
    folders = environment.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    kept = [f for f in folders if f and not (site and f.startswith(site))]
    if kept:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep) if python == sys.executable else []
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, paths)])
    # Threads that spin while they wait starve whatever else this run has going on.
    return {"OMP_WAIT_POLICY": "passive"} | environment


class Worker:
    """A worker process, which goes on beside this one until `result` waits for it.

    Args:
        module: the worker, `benchmarks.on_gpu.NAME`.
        task: which of its tasks.
        python: the interpreter.
        environment: its environment.
        arguments: of the task, plain values.
    """

    def __init__(
        self, module: str, task: str, python: str, environment: dict[str, str], **arguments: object
    ) -> None:
        command = [python, "-m", f"benchmarks.on_gpu.{module}", task, json.dumps(arguments)]
        self._report = Report()
        self._last_words: list[str] = []
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            before, mark, result = line.partition(MARK)
            if mark:
                self._report.rows.append(json.loads(result))
            if before.strip():
                self._last_words = [*self._last_words[1 - LINES_KEPT :], before.strip()]

    def result(self, seconds: float) -> Report:
        """Wait for the worker, and end it with all it started once the time is over."""
        try:
            code = self._process.wait(max(0.0, seconds))
            self._reader.join(5)
            if code:
                self._report.problem = describe_failure(code, self._last_words)
        except subprocess.TimeoutExpired:
            self._report.problem = "no time left"
            self.end()
        return self._report

    def end(self) -> None:
        """End the worker, if it still runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(5)


def describe_failure(code: int, output: list[str]) -> str:
    """One line on a process that failed: its exception, else its last words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    output = [line for line in output if line.strip()]
    for line in reversed(output):
        if _EXCEPTION.match(line):
            return line[:160]
    return (output[-1] if output else f"exit code {code}")[:160]
