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

from mindtwins import errors
from mindtwins.distribution.connection import Link, RankLost, end_process
from mindtwins.distribution.process_info import Place, find_place
from mindtwins.distribution.supervisor import Keeper, without_launcher
from mindtwins.errors import UserError

# MindSpore takes a rank for dead that is busy for longer than its default of 30 s, compiling or
# evaluating. Here the keeper notices dead ranks, and much sooner.
NODE_SECONDS = 24 * 3600
# A mistake in the command is every rank's. Rank 0 tells it, and its end is the others' as well.
AFTER_RANK_0_SECONDS = 3.0

_link: Link | None = None


def current_link() -> Link | None:
    """The connection to the other ranks; None in a process on its own."""
    return _link


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
    global _link
    place = find_place()
    if place.size == 1 or not distribute:
        if place.is_scheduler:
            sys.exit(0)
        os.environ.pop("MS_ROLE", None)  # or MindSpore waits for a cluster
        return 0
    os.environ.setdefault("MS_NODE_TIMEOUT", str(NODE_SECONDS))
    # MindSpore warns of a dozen failed connections while the ranks find each other.
    os.environ.setdefault("GLOG_v", "3")
    if place.is_scheduler:
        scheduler = (place.host, int(os.environ["MS_SCHED_PORT"]))
        keeper = Keeper(place.job, place.size, _address(place), scheduler, reports=True)
        sys.exit(keeper.run())
    is_bridged = place.launcher == "mpirun" and device_target == "CPU"
    if place.launcher == "mpirun" and place.rank == 0:
        _start_keeper(place, with_scheduler=is_bridged)
    _link = Link(place)
    if is_bridged:
        host, port = _link.scheduler
        os.environ |= {
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": str(place.size),
            "MS_NODE_ID": str(place.rank),
            "MS_SCHED_HOST": host,
            "MS_SCHED_PORT": str(port),
        }
    return place.rank


def run_cli(main: Callable[[list[str]], None]) -> None:
    """`errors.run_cli` for a script that may run as several ranks: they end together.

    An error of one rank ends them all. It is printed once, by the lowest of the ranks that have it,
    and the lowest of the others says which rank failed.
    """
    errors.run_cli(lambda argv: _run(main, argv))


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    try:
        code = _run_to_end(main, argv)
    except RankLost:
        end_process(1)
    except BaseException as error:
        if _link is None:
            if find_place().rank > 0:
                time.sleep(AFTER_RANK_0_SECONDS)
            raise
        _fail(_link, error)
    if _link is not None:
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
        code = end.code or 0
        if not isinstance(code, int):
            raise TypeError("a script ends with a number, or with a UserError") from end
    if _link is not None:
        _link.leave()
    return code


def _fail(link: Link, error: BaseException) -> None:
    """Tell the other ranks, and the user, what went wrong here; then end."""
    # Else a signal of the launcher's could cut the message off.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if isinstance(error, UserError):
        message = f"rank {link.rank}: {error}" if link.rank else str(error)
        speaks = link.fail(f"failed: {error}")
        text = f"error: {message}"
    else:
        # The first line: MindSpore's messages go on with its call stack.
        summary = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        speaks = link.fail(f"failed: {summary}")
        text = f"rank {link.rank}:\n{''.join(traceback.format_exception(error)).rstrip()}"
    if speaks:
        print(text, file=sys.stderr, flush=True)
    link.linger()
    end_process(1)


def _address(place: Place) -> str:
    return "127.0.0.1" if place.one_machine else ""


def _start_keeper(place: Place, with_scheduler: bool) -> None:
    scheduler = []
    if with_scheduler:
        host = socket.gethostbyname(place.host)  # MindSpore takes numbers only
        scheduler = [host, os.environ.get("MS_SCHED_PORT", "0")]
    subprocess.Popen(
        [
            *(sys.executable, "-m", "mindtwins.distribution.supervisor"),
            *(place.job, str(place.size), _address(place), *scheduler),
        ],
        env=without_launcher(os.environ),
        stdin=subprocess.DEVNULL,
    )
