"""Stopping on a signal, at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from mindtwins.errors import INTERRUPTS, end_interrupted


class StopRequest:
    """Within its block, Ctrl-C or SIGTERM only sets `signal`; a second Ctrl-C ends the process.

    A thread listens beside the handlers: Python runs those only when MindSpore comes back to it,
    seconds later while it compiles.

    Args:
        announce: called once, by that thread, when the first signal has come.

    Attributes:
        signal: number of the signal that came first, or None.
    """

    def __init__(self, announce: Callable[[], None] = lambda: None) -> None:
        self.signal: int | None = None
        self._announce = announce

    def __enter__(self) -> StopRequest:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = {number: signal.signal(number, self._note) for number in INTERRUPTS}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=[reader], name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        # Even if the thread should be kept from running. (SIGTERM may be sent more than once by
        # those who want the same.)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _listen(self, reader: int) -> None:
        """Take the numbers of the signals that the system has delivered."""
        first = True
        while byte := os.read(reader, 1):
            number = byte[0]
            if number not in INTERRUPTS:
                continue
            if first:
                self.signal = self.signal or number
                self._announce()
                first = False
            elif number == signal.SIGINT:
                end_interrupted(number)
        os.close(reader)
