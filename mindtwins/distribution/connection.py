"""A rank's connection to the supervisor of its job."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from typing import NoReturn

from mindtwins.distribution.messages import Channel, Message, candidate_ports
from mindtwins.distribution.process_info import ProcessInfo
from mindtwins.errors import UserError

CONNECT_SECONDS = 120.0
# After another rank's failure: how long until this one must have noticed it in an `exchange`, and
# how long it may then take to save what it has.
NOTICE_SECONDS = 10.0
FAREWELL_SECONDS = 40.0


class RankLost(UserError):
    """Another rank failed; the message names it and says why. It has been printed already.

    Attributes:
        is_reporter: this is the lowest of the ranks that are left, which speaks for all of them.
    """

    def __init__(self, message: str, is_reporter: bool) -> None:
        super().__init__(message)
        self.is_reporter = is_reporter


class Connection:
    """A rank's line to the supervisor, through which the ranks exchange bytes and end together.

    A thread listens. When another rank has failed, the `exchange` that runs, or else the next one,
    raises `RankLost`. If none comes soon, because MindSpore waits for the lost rank in a gradient
    reduction, the thread ends the process.

    Args:
        process: which rank of which job this process is.

    Raises:
        UserError: no supervisor was found.
    """

    def __init__(self, process: ProcessInfo) -> None:
        self.process = process
        self._channel, welcome = _connect(process)
        self.scheduler: tuple[str, int] | None = welcome.fields["scheduler"]
        self._scheduler_listens = threading.Event()
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._verdict: Message | None = None
        self._judged = threading.Event()
        self._noticed = threading.Event()
        self._closed = threading.Event()
        self._has_failed = self._is_leaving = False
        threading.Thread(target=self._listen, name="connection", daemon=True).start()

    @property
    def rank(self) -> int:
        return self.process.rank

    @property
    def size(self) -> int:
        return self.process.size

    def exchange(self, label: str, payload: bytes = b"") -> list[bytes]:
        """Give this rank's bytes to all, and get everyone's in the order of the ranks.

        Every rank has to call it with the same label; it returns when the last one has called.

        Raises:
            RankLost: another rank failed.
        """
        if self._verdict is None:
            self._channel.send("exchange", payload, label=label)
            message = self._inbox.get()
        else:
            message = None
        if message is None:
            self._noticed.set()
            raise self._loss()
        parts, start = [], 0
        for length in message.fields["lengths"]:
            parts.append(message.payload[start : start + length])
            start += length
        return parts

    def wait_for_scheduler(self) -> None:
        """Wait until MindSpore's scheduler listens.

        Raises:
            RankLost: the scheduler or another rank failed.
        """
        while not self._scheduler_listens.wait(0.1):
            if self._judged.is_set():
                self._noticed.set()
                raise self._loss()

    def fail(self, reason: str) -> bool:
        """Tell the others that this rank cannot go on, and why.

        Returns:
            Whether this rank has to report the reason: no if a lower one does with the same words.
        """
        self._noticed.set()
        if self._judged.is_set():  # too late to be part of the verdict
            assert self._verdict is not None
            return reason not in self._verdict.fields["message"]
        self._has_failed = True
        self._channel.send("failed", reason=reason)
        self._judged.wait(FAREWELL_SECONDS)
        return self._verdict is None or self._verdict.fields["speaks"]

    def linger(self) -> None:
        """Wait until the other ranks have ended: this one, which failed, must not exit first."""
        self._closed.wait(FAREWELL_SECONDS)

    def leave(self) -> None:
        """Wait until all ranks are done, and say that this one ends because it is done.

        Raises:
            RankLost: another rank failed.
        """
        self.exchange("the end")
        self._is_leaving = True
        self._channel.send("leave")

    def _listen(self) -> None:
        while True:
            message = self._channel.receive()
            if message is None:
                break
            if message.kind == "exchanged":
                self._inbox.put(message)
            elif message.kind == "scheduler":
                self._scheduler_listens.set()
            elif message.kind == "verdict":
                self._take(message)
        self._closed.set()
        if not self._is_leaving and self._verdict is None:
            reason = "the job's supervisor is gone: its process or its machine died"
            self._take(Message("verdict", {"message": reason, "speaks": True}))

    def _take(self, verdict: Message) -> None:
        self._verdict = verdict
        if verdict.fields["speaks"] and not self._has_failed:
            # Now, not when this rank comes to an end: a launcher may kill it within the second.
            print(f"error: {self._loss()}", file=sys.stderr, flush=True)
        self._judged.set()
        self._inbox.put(None)
        threading.Thread(target=self._see_to_end, name="end", daemon=True).start()

    def _see_to_end(self) -> None:
        if self._noticed.wait(NOTICE_SECONDS):
            time.sleep(FAREWELL_SECONDS)
        end_process(1)

    def _loss(self) -> RankLost:
        assert self._verdict is not None
        return RankLost(self._verdict.fields["message"], self._verdict.fields["speaks"])


def end_process(code: int) -> NoReturn:
    """End this process now.

    MindSpore's own way out takes leave of its scheduler for several seconds, and after a failure
    waits for the ranks that are lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _connect(process: ProcessInfo) -> tuple[Channel, Message]:
    """Find the supervisor among the ports on which it may listen."""
    give_up = time.monotonic() + CONNECT_SECONDS
    while True:
        for port in candidate_ports(process.job):
            try:
                channel = Channel(socket.create_connection((process.host, port), timeout=2))
            except OSError:
                continue
            channel.send(
                "hello",
                job=process.job,
                rank=process.rank,
                process=os.getpid(),
                machine=socket.gethostname(),
            )
            welcome = channel.receive()
            if welcome is not None and welcome.kind == "welcome":
                channel.set_timeout(None)
                return channel, welcome
            channel.close()
        if time.monotonic() > give_up:
            raise UserError(
                f"rank {process.rank} found no rank 0 at {process.host}, ports "
                f"{candidate_ports(process.job)}: check that rank 0 started and that no firewall "
                "is between them"
            )
        time.sleep(0.1)
