"""Processes that measure: asked, and answering, in lines of JSON.

MindSpore and PyTorch each get processes of their own: their memory pools, thread pools and CUDA
libraries would disturb each other's, PyTorch may be another interpreter's, and a crash takes no
other measurement along.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from benchmarks.inputs import MINDTWINS, ONNXRUNTIME, OPENVINO
from mindtwins.errors import UserError

ROOT = Path(__file__).parents[1]
MARK = "@answer "
_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Interrupt)\b")


class Failed(UserError):
    """Why a worker has no answer, in one line."""


def serve(*functions: Callable[..., dict | None]) -> None:
    """In a worker: call these as asked, by name, until no more is asked."""
    tasks = {function.__name__: function for function in functions}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = tasks[name](**arguments)
        except Exception as error:
            answer = {"problem": reason(error)}
        print(MARK + json.dumps(answer), flush=True)


def reason(error: Exception) -> str:
    """An exception in one line."""
    return str(error).strip().partition("\n")[0][:120] or repr(error)


class Worker:
    """A process of `benchmarks.MODULE`, started when it is first asked or was lost.

    Args:
        module: what to run; it calls `serve`.
        environment: of the process.
        python: the interpreter.
    """

    def __init__(
        self, module: str, environment: dict[str, str], python: str = sys.executable
    ) -> None:
        self._command = [python, "-m", f"benchmarks.{module}"]
        self._environment = environment
        self._process: subprocess.Popen | None = None
        self._last_words: deque[str] = deque(maxlen=400)

    def send(self, task: str, **arguments: object) -> None:
        """Ask for a task without waiting for it."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        with suppress(BrokenPipeError):  # it has just ended: `receive` says why
            print(json.dumps([task, arguments]), file=self._process.stdin, flush=True)

    def receive(self) -> dict:
        """Wait for the answer to the earliest task that was sent and has none yet.

        Raises:
            Failed: the task could not be done, or the process has ended.
        """
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            before, mark, answer = line.partition(MARK)
            if before.strip():
                self._last_words.append(before.strip())
            if mark:
                answer = json.loads(answer) or {}
                if "problem" in answer:
                    raise Failed(answer["problem"])
                return answer
        raise Failed(describe_failure(self._process.wait(), list(self._last_words)))

    def ask(self, task: str, **arguments: object) -> dict:
        """Have a task done."""
        self.send(task, **arguments)
        return self.receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def describe_failure(code: int, output: list[str]) -> str:
    """One line on a process that failed: its exception, else its last words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    output = [line for line in output if line.strip()]
    exceptions = [line for line in output if _EXCEPTION.match(line)]
    return [f"exit code {code}", *output[-1:], *exceptions[-1:]][-1][:160]


def mindspore_environment() -> dict[str, str]:
    """For processes with MindSpore: this one's, and what it needs on every machine."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Code for a newer card than MindSpore knows is compiled when it is first used: what is not
    # used is not compiled, and what was is kept.
    defaults = {"GLOG_v": "3", "CUDA_MODULE_LOADING": "LAZY", "CUDA_CACHE_MAXSIZE": "4000000000"}
    return defaults | os.environ | {"PYTHONPATH": path}


def torch_environment(python: str = sys.executable) -> dict[str, str]:
    """For processes with PyTorch: without the CUDA 11 libraries that MindSpore is pointed to.

    A PyTorch with CUDA brings its own, and would find MindSpore's older NCCL under the same name.

    Args:
        python: the interpreter; if it is not this one, this one's PYTHONPATH is not for it.
    """
    environment = mindspore_environment()
    spec = find_spec("mindspore")
    site = str(Path(spec.origin).parents[1]) if spec and spec.origin else None
    folders = environment.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    if kept := [f for f in folders if f and not (site and f.startswith(site))]:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    return environment if python == sys.executable else environment | {"PYTHONPATH": str(ROOT)}


def start(contestant: str, torch_python: str = sys.executable) -> Worker:
    """A process for a contestant, PyTorch's ones with an interpreter of their own."""
    if contestant == MINDTWINS:
        return Worker("mindspore_side", mindspore_environment())
    if contestant in (ONNXRUNTIME, OPENVINO):
        return Worker("onnx_side", mindspore_environment())
    return Worker("torch_side", torch_environment(torch_python), torch_python)
