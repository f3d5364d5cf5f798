"""Starting a script as one of several ranks, and ending it as one job.

A script calls `begin` before it imports MindSpore, and runs under this module's `run_cli`. Started
alone, both do nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from mindtwins import errors
from mindtwins.console import notices
from mindtwins.distribution.connection import Connection, RankLost, end_process
from mindtwins.distribution.launched import stand_apart
from mindtwins.distribution.process_info import ProcessInfo, find_process_info
from mindtwins.distribution.supervisor import Supervisor, without_launcher
from mindtwins.errors import UserError

# MindSpore takes a rank for dead that is busy for longer than its default of 30 s, compiling or
# evaluating. Here the supervisor notices dead ranks, and much sooner.
NODE_SECONDS = 24 * 3600
# All ranks find a mistake in the command. Rank 0 reports it; when it ends, the launcher ends the
# others, which therefore wait this long before they would report it too.
AFTER_RANK_0_SECONDS = 3.0

Made = TypeVar("Made")

_connection: Connection | None = None


def current_connection() -> Connection | None:
    """The connection to the other ranks; None in a process on its own."""
    return _connection


def begin(distribute: bool, device_target: str) -> int:
    """Join the ranks that mpirun or msrun started; to be called before MindSpore is imported.

    Returns at once in a process that was started alone. In msrun's scheduler process it does not
    return, but raises SystemExit when the job is over.

    Args:
        distribute: False leaves each process on its own.
        device_target: on "CPU", MindSpore does not know mpirun: it is told by environment variables
            and by a scheduler process what msrun would tell it. On devices it is left alone.

    Returns:
        This process's rank, 0 if it is on its own.

    Raises:
        UserError: the ranks did not find each other.
    """
    global _connection
    process = find_process_info()
    if process.size == 1 or not distribute:
        if process.is_scheduler:
            sys.exit(0)
        os.environ.pop("MS_ROLE", None)  # or MindSpore waits for a cluster
        return 0
    os.environ.setdefault("MS_NODE_TIMEOUT", str(NODE_SECONDS))
    # MindSpore warns of a dozen failed connections while the ranks find each other.
    os.environ.setdefault("GLOG_v", "3")
    stand_apart(ends_on_its_own=process.is_scheduler)
    if process.is_scheduler:
        for number in errors.INTERRUPTS:  # it follows when the ranks are gone
            signal.signal(number, signal.SIG_IGN)
        scheduler = (process.host, int(os.environ["MS_SCHED_PORT"]))
        supervisor = Supervisor(
            process.job, process.size, _address(process), scheduler, reports=True
        )
        sys.exit(supervisor.run())
    is_bridged = process.launcher == "mpirun" and device_target == "CPU"
    if process.launcher == "mpirun" and process.rank == 0:
        _start_supervisor(process, with_scheduler=is_bridged)
    _connection = Connection(process)
    if is_bridged:
        assert _connection.scheduler is not None
        host, port = _connection.scheduler
        os.environ |= {
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": str(process.size),
            "MS_NODE_ID": str(process.rank),
            "MS_SCHED_HOST": host,
            "MS_SCHED_PORT": str(port),
        }
    return process.rank


def rank_0_first(work: Callable[[], Made]) -> Made:
    """What `work` gives, on every rank: rank 0 is done with it before the others begin.

    For what the first leaves behind for the rest on its machine, such as a file in a cache.
    """
    if _connection is None:
        return work()
    if _connection.rank == 0:
        made = work()
        _connection.exchange("rank 0 is first")
        return made
    _connection.exchange("rank 0 is first")
    return work()


def run_cli(main: Callable[[list[str]], None]) -> None:
    """`errors.run_cli` for a script that may run as several ranks: they end together.

    An error of one rank ends them all. It is printed once, by the lowest of the ranks that have it,
    and the lowest of the others says which rank failed.
    """
    is_first = _is_first()
    notices.disabled = not is_first
    errors.run_cli(lambda argv: _run(main, argv), tells=is_first)


def _is_first() -> bool:
    """Whether this is rank 0, or knows of no ranks."""
    try:
        process = find_process_info()
    except UserError:  # which `begin` will report
        return True
    return process.rank == 0 and not process.is_scheduler


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    try:
        code = _run_to_end(main, argv)
    except RankLost:
        end_process(1)
    except BaseException as error:
        if _connection is not None:
            _fail(_connection, error)
        if not errors.was_interrupted() and find_process_info().rank > 0:
            time.sleep(AFTER_RANK_0_SECONDS)
        raise
    if _connection is not None:
        end_process(code)
    sys.exit(code)


def _run_to_end(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run, and wait for the others: a launcher may kill them when the first rank has exited.

    Returns:
        The exit code.
    """
    code = 0
    try:
        main(argv)
    except SystemExit as end:
        stated = end.code or 0
        if not isinstance(stated, int):
            raise TypeError("a script ends with a number, or with a UserError") from end
        code = stated
    if _connection is not None:
        _connection.leave()
    return code


def _fail(connection: Connection, error: BaseException) -> None:
    """Tell the other ranks, and the user, what went wrong here; then end."""
    if errors.was_interrupted():
        connection.fail("was interrupted")
        errors.end_interrupted()
    # Else a signal of the launcher's could cut the message off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if isinstance(error, UserError):
        message = f"rank {connection.rank}: {error}" if connection.rank else str(error)
        speaks = connection.fail(f"failed: {error}")
        text = f"error: {message}"
    else:
        # The first line: MindSpore's messages go on with its call stack.
        summary = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        speaks = connection.fail(f"failed: {summary}")
        text = f"rank {connection.rank}:\n{''.join(traceback.format_exception(error)).rstrip()}"
    if speaks:
        print(text, file=sys.stderr, flush=True)
    connection.linger()
    end_process(1)


def _address(process: ProcessInfo) -> str:
    return "127.0.0.1" if process.one_machine else ""


def _start_supervisor(process: ProcessInfo, with_scheduler: bool) -> None:
    scheduler = []
    if with_scheduler:
        host = socket.gethostbyname(process.host)  # MindSpore takes numbers only
        scheduler = [host, os.environ.get("MS_SCHED_PORT", "0")]
    subprocess.Popen(
        [
            *(sys.executable, "-m", "mindtwins.distribution.supervisor"),
            *(process.job, str(process.size), _address(process), *scheduler),
        ],
        env=without_launcher(os.environ),
        stdin=subprocess.DEVNULL,
    )
