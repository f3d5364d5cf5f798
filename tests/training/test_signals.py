"""Stopping on a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mindtwins.training.signals import StopRequest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_second_ctrl_c_would_kill(number: int):
    before = signal.getsignal(number)
    announced = threading.Event()
    with StopRequest(announced.set) as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert announced.wait(10)
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_same_request_may_come_again():
    """Launchers and schedulers send SIGTERM to a process and to its group."""
    with StopRequest() as request:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code", "output"),
    [
        (["SIGINT"], 0, "stopping\nend of the step\n"),
        (["SIGTERM", "SIGTERM"], 0, "stopping\nend of the step\n"),
        (["SIGINT", "SIGINT"], 130, "stopping\n"),
        (["SIGTERM", "SIGINT"], 130, "stopping\n"),
    ],
)
def test_while_python_does_not_come_to_its_handlers(signals: list[str], code: int, output: str):
    """As while MindSpore compiles: the main thread is in a call of C that goes on for seconds."""
    program = f"""
import ctypes, os, signal, threading, time
from mindtwins.training.signals import StopRequest

def send():
    for name in {signals!r}:
        time.sleep(1)
        os.kill(os.getpid(), getattr(signal, name))

libc = ctypes.CDLL(None)
with StopRequest(lambda: print("stopping", flush=True)):
    threading.Thread(target=send).start()
    for _ in range(30):
        libc.usleep(100_000)
    print("end of the step")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == output
    assert done.returncode in (code, -signal.SIGINT if code == 130 else code)
