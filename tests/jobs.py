"""Training jobs of several processes, for tests: starting them, and looking at their processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")

# A loaded machine compiles slowly; what must be fast is asserted by the tests themselves.
PATIENCE = 400


class Job:
    """A script under a launcher.

    Args:
        launcher: "mpirun" or "msrun"; "" starts the script alone.
        folder: where the job runs and its logs go; also what its processes are known by, so the
            script's arguments have to name something in it.
        arguments: script, below the project's folder, and its arguments.
    """

    def __init__(self, launcher: str, folder: Path, *arguments: object, ranks: int = 2) -> None:
        script, *rest = map(str, arguments)
        self.folder = folder
        self.log = folder / "job.log"
        command = [str(ROOT / script), *rest]
        if launcher == "mpirun":
            options = ["--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
            command = ["mpirun", *options, sys.executable, *command]
        elif launcher == "msrun":
            command = [
                "msrun",
                *(f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True"),
                *(f"--master_port={_free_port()}", f"--log_dir={folder}"),
                *command,
            ]
        else:
            command = [sys.executable, *command]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the job's end; its exit code."""
        return self.process.wait(seconds)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds while the job runs."""
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"the job ended early:\n{self.output()}"
            assert time.monotonic() < give_up, f"waited too long:\n{self.output()}"
            time.sleep(0.05)

    def output(self) -> str:
        """What the job has printed so far, on the terminal or in the launcher's logs."""
        logs = [self.log, *sorted(self.folder.glob("worker_*.log"))]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())

    def process_of(self, rank: int) -> int:
        """The process number of a rank: of the child of the one that the launcher started."""
        found = [
            pid
            for pid, _, environment in _processes(self.folder)
            for name in ("OMPI_COMM_WORLD_RANK", "MS_NODE_ID")
            if f"{name}={rank}".encode() in environment and pid != self.process.pid
        ]
        assert found, f"rank {rank} is not running"
        return max(found)

    def processes(self) -> list[str]:
        """The command lines of all processes that belong to the job."""
        return [command for _, command, _ in _processes(self.folder)]


def _processes(folder: Path) -> list[tuple[int, str, list[bytes]]]:
    """Processes that work in the folder: number, command line, environment they started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") != str(folder.resolve()):
                continue
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
        if command:  # not one that has ended and waits to be collected
            found.append((int(path.name), command, environment))
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
