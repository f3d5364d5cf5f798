"""The supervisor: one small process per job that every rank is connected to.

It lets the ranks exchange bytes, notices at once when one of them dies, tells the others why, and
sees to it that none stays behind. It also runs MindSpore's scheduler where there is one.

Under msrun, the process that msrun starts as the scheduler becomes the supervisor; under mpirun,
rank 0 starts one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindtwins.distribution.messages import Channel, Message, candidate_ports
from mindtwins.errors import UserError, run_cli

# Ranks of a large job on slow disks may take this long to import what they need.
JOIN_SECONDS = 300.0
# When one rank has failed, others may be about to fail for the same reason: one message is enough.
COLLECT_SECONDS = 1.0
# How long the survivors of a failure may take, saving a checkpoint included.
SURVIVORS_SECONDS = 45.0

_SCHEDULER_PROGRAM = """
from mindtwins.distribution.supervisor import die_with_parent
die_with_parent()
from mindspore.communication import init
init()
"""


def die_with_parent() -> None:
    """Have the system kill this process when the one that started it ends, however it does."""
    set_parent_death_signal = 1
    libc = ctypes.CDLL(None)
    # macOS has no such call; nor has it MindSpore's scheduler under mpirun.
    if hasattr(libc, "prctl"):
        libc.prctl(set_parent_death_signal, signal.SIGKILL)


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what makes a process one of mpirun's."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("OMPI_", "PMIX_", "PRTE_"))
    }


@dataclass
class _Rank:
    """What the supervisor knows about a rank.

    Attributes:
        channel: the connection to it.
        process: its process number.
        machine: the host name of the machine that it runs on.
        state: "running", "failed" (it said so), "left" (it is done) or "gone".
        offer: (label, payload) of an exchange in which it waits for the others.
    """

    channel: Channel
    process: int
    machine: str
    state: str = "running"
    offer: tuple[str, bytes] | None = None


class Supervisor:
    """Keeps the ranks of a job together until the last one is gone.

    Args:
        job: its name, from which the port follows.
        size: number of ranks.
        address: where to listen: "127.0.0.1", or "" for all of the machine's addresses.
        scheduler: (host, port) of the MindSpore scheduler to run; None for none. Port 0: any.
        parent: the process of rank 0: if it ends before it has connected, so does the supervisor;
            0 under msrun.
        reports: print failures here too, where the ranks' output goes elsewhere.
    """

    def __init__(
        self,
        job: str,
        size: int,
        address: str = "127.0.0.1",
        scheduler: tuple[str, int] | None = None,
        parent: int = 0,
        reports: bool = False,
    ) -> None:
        self.job = job
        self.size = size
        self._parent = parent
        self._reports = reports
        self._server = _listen(job, address)
        self._ranks: dict[int, _Rank] = {}
        self._events: queue.Queue[tuple[int, Channel, Message | None]] = queue.Queue()
        self._failures: dict[int, str] = {}
        self._started = time.monotonic()
        self._failed_at = self._judged_at = 0.0
        self._scheduler_address = scheduler
        self._scheduler: subprocess.Popen | None = None
        self._scheduler_listens = False

    def run(self) -> int:
        """Keep the ranks together until the job is over.

        Returns:
            0 if every rank was done when it left, 1 after a failure.
        """
        if self._scheduler_address is not None:
            self._start_scheduler()
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            while not self._is_over():
                self._handle_events()
                self._watch()
        finally:
            self._end_scheduler()
        return 1 if self._failures else 0

    # The ranks

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(
                target=self._listen_to, args=[Channel(connection)], daemon=True
            ).start()

    def _listen_to(self, channel: Channel) -> None:
        hello = channel.receive()
        if hello is None or hello.kind != "hello" or hello.fields.get("job") != self.job:
            channel.close()  # not one of ours
            return
        rank: Any = hello.fields.get("rank")
        self._events.put((rank, channel, hello))
        while True:
            message = channel.receive()
            self._events.put((rank, channel, message))
            if message is None:
                return

    def _handle_events(self) -> None:
        try:
            rank, channel, message = self._events.get(timeout=0.1)
        except queue.Empty:
            return
        if message is not None and message.kind == "hello":
            self._welcome(rank, channel, message)
            return
        known = self._ranks.get(rank)
        if known is None or known.channel is not channel:
            return  # it was refused
        if message is None:
            self._lose(rank)
        elif message.kind == "exchange":
            known.offer = (message.fields["label"], message.payload)
            self._complete_exchange()
        elif message.kind == "failed":
            known.state = "failed"
            self._fail(rank, message.fields["reason"])
        elif message.kind == "leave":
            known.state = "left"

    def _welcome(self, rank: int, channel: Channel, hello: Message) -> None:
        if rank in self._ranks or rank not in range(self.size) or self._failures:
            channel.close()  # of another job by the same name: this one is about to end
            return
        self._ranks[rank] = _Rank(channel, hello.fields["process"], hello.fields["machine"])
        channel.send("welcome", scheduler=self._scheduler_address)
        if self._scheduler_listens:
            channel.send("scheduler")

    def _complete_exchange(self) -> None:
        offers = {k: r.offer for k, r in self._ranks.items() if r.offer is not None}
        if len(offers) < self.size:
            return
        labels = {k: label for k, (label, _) in offers.items()}
        if len(set(labels.values())) > 1:
            self._fail(-1, f"the ranks are not in step: {labels}")
            return
        payloads = [offers[k][1] for k in range(self.size)]
        for rank in self._ranks.values():
            rank.offer = None
            rank.channel.send(
                "exchanged", b"".join(payloads), lengths=[len(payload) for payload in payloads]
            )

    def _lose(self, rank: int) -> None:
        lost = self._ranks[rank]
        if lost.state == "running":
            self._fail(
                rank, f"died (process {lost.process} on {lost.machine}): it crashed or was killed"
            )
            self._failed_at = float("-inf")  # nothing to wait for: it cannot say more
        lost.state = "gone"

    # Failures

    def _fail(self, rank: int, reason: str) -> None:
        if self._judged_at:
            return  # a consequence of the first
        self._failures.setdefault(rank, reason)
        self._failed_at = self._failed_at or time.monotonic()

    def _judge(self) -> None:
        """Tell all ranks who failed and why, and each whether it is the one to print that."""
        self._judged_at = time.monotonic()
        running = [k for k, r in self._ranks.items() if r.state == "running"]
        message = "; ".join(
            f"rank {k} {reason}" if k >= 0 else reason for k, reason in self._failures.items()
        )
        for number, rank in self._ranks.items():
            if rank.state == "failed":
                reason = self._failures[number]
                speaks = number == min(k for k, v in self._failures.items() if v == reason)
            else:
                speaks = number == min(running, default=-1)
            rank.channel.send("verdict", message=message, speaks=speaks)
        if self._reports:
            print(f"error: {message}", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        now = time.monotonic()
        if self._failures:
            all_failed = len(self._failures) >= self.size
            if not self._judged_at and (all_failed or now - self._failed_at > COLLECT_SECONDS):
                self._judge()
            return
        if len(self._ranks) < self.size and now - self._started > JOIN_SECONDS:
            missing = sorted(set(range(self.size)) - set(self._ranks))
            self._fail(-1, f"ranks {missing} did not start within {JOIN_SECONDS:.0f} s")
        if self._scheduler is not None and not self._scheduler_listens:
            self._look_for_scheduler()
        states = [rank.state for rank in self._ranks.values()]
        if self._scheduler is not None and self._scheduler.poll() and "running" in states:
            self._fail(-1, f"MindSpore's scheduler ended with code {self._scheduler.returncode}")

    def _is_over(self) -> bool:
        states = [rank.state for rank in self._ranks.values()]
        if not self._judged_at:
            if not states and self._parent and os.getppid() != self._parent:
                return True  # rank 0 died before it could connect
            return len(states) == self.size and set(states) == {"gone"} and not self._failures
        if set(states) & {"running", "left"}:
            if time.monotonic() - self._judged_at < SURVIVORS_SECONDS:
                return False
            self._kill_remaining()
        # Those that failed wait for this: a launcher ends the whole job when the first one exits.
        for rank in self._ranks.values():
            rank.channel.close()
        return True

    def _kill_remaining(self) -> None:
        """Kill the survivors on this machine that did not end by themselves."""
        for rank in self._ranks.values():
            if rank.state != "gone" and rank.machine == socket.gethostname():
                with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                    os.kill(rank.process, signal.SIGKILL)

    # MindSpore's scheduler

    def _start_scheduler(self) -> None:
        assert self._scheduler_address is not None
        host, port = self._scheduler_address
        self._scheduler_address = (host, port or _free_port(host))
        environment = without_launcher(os.environ) | {
            "MS_ROLE": "MS_SCHED",
            "MS_WORKER_NUM": str(self.size),
            "MS_SCHED_HOST": host,
            "MS_SCHED_PORT": str(self._scheduler_address[1]),
        }
        environment.pop("MS_NODE_ID", None)
        self._scheduler = subprocess.Popen(
            [sys.executable, "-c", _SCHEDULER_PROGRAM], env=environment, stdin=subprocess.DEVNULL
        )

    def _look_for_scheduler(self) -> None:
        """Tell the ranks when the scheduler listens: those that are early retry for a minute."""
        assert self._scheduler_address is not None
        try:
            socket.create_connection(self._scheduler_address, timeout=1).close()
        except OSError:
            return
        self._scheduler_listens = True
        for rank in self._ranks.values():
            rank.channel.send("scheduler")

    def _end_scheduler(self) -> None:
        if self._scheduler is None:
            return
        # It need not be asked: its workers are gone, and without having taken leave of it.
        self._scheduler.kill()
        self._scheduler.wait()


def _listen(job: str, address: str) -> socket.socket:
    for port in candidate_ports(job):
        try:
            return socket.create_server((address, port), backlog=1024)
        except OSError:
            continue  # taken
    raise UserError(f"all of the ports {candidate_ports(job)} are taken: end what listens there")


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]


def main(argv: list[str]) -> None:
    """Run a supervisor as rank 0 starts it: JOB SIZE ADDRESS [SCHEDULER_HOST SCHEDULER_PORT]."""
    job, size, address, *scheduler = argv
    where = (scheduler[0], int(scheduler[1])) if scheduler else None
    # What ends the job reaches the ranks; the supervisor follows when they are gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(Supervisor(job, int(size), address, where, parent=os.getppid()).run())


if __name__ == "__main__":
    run_cli(main)
