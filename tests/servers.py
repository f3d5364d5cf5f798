"""serve.py as a process of its own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs import PATIENCE, ROOT


@dataclass
class Server:
    """A server that is ready.

    Attributes:
        errors: what it writes to its standard error.
    """

    process: subprocess.Popen
    url: str
    errors: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Interrupt it and wait for its end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def started(folder: Path, *words: object) -> Iterator[Server]:
    """A server with these flags at a free port; its errors are in a file in `folder`."""
    errors = folder / "errors.txt"
    command = [sys.executable, str(ROOT / "serve.py"), "--port", "0", *map(str, words)]
    with errors.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GLOG_v": "3"},
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            # Else an interrupt is ignored where the tests themselves run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " is ready at http://" in line, f"{line}{errors.read_text()}"
        yield Server(process, line.split()[-1], errors)
    finally:
        process.kill()
        process.wait()
