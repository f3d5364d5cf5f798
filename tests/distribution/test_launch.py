"""Jobs of real processes, without MindSpore, so that they start at once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindtwins.distribution.messages import candidate_ports

WORKER = Path(__file__).with_name("worker.py")


@dataclass
class Job:
    codes: list[int]
    outputs: list[str]
    errors: list[str]
    seconds: float


def run_ranks(*arguments, ranks=2, job=None) -> Job:
    """Start processes as mpirun would, and wait until all of them, and the supervisor, are gone."""
    job = job or f"test-{uuid.uuid4()}"
    started = time.monotonic()
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "OMPI_COMM_WORLD_RANK": str(rank),
            "OMPI_COMM_WORLD_SIZE": str(ranks),
            "OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks),
            "PMIX_NAMESPACE": job,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    # The supervisor holds rank 0's output open: this waits for it too.
    texts = [process.communicate(timeout=50) for process in processes]
    return Job(
        [process.returncode for process in processes],
        [output for output, _ in texts],
        [error for _, error in texts],
        time.monotonic() - started,
    )


def test_exchange_gives_everyone_the_bytes_of_all_in_order():
    job = run_ranks("nothing", ranks=3)
    assert job.codes == [0, 0, 0]
    assert job.outputs == ["all: b'0' b'x1' b'xx2'\n"] * 3
    assert job.errors == [""] * 3


def test_processes_that_are_not_to_be_distributed_stay_alone():
    job = run_ranks("alone")
    assert job.codes == [0, 0]
    assert job.outputs == ["alone\n"] * 2


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_rank_is_named_and_ends_the_others(victim):
    job = run_ranks("kill", victim, ranks=3)
    survivors = [rank for rank in range(3) if rank != victim]
    assert [job.codes[rank] for rank in survivors] == [1, 1]
    first, second = (job.errors[rank] for rank in survivors)
    assert first.startswith(f"error: rank {victim} died (process ")
    assert second == ""
    assert job.seconds < 10


def test_survivor_that_is_busy_elsewhere_is_ended():
    job = run_ranks("busy", 1)
    assert job.codes[0] == 1
    assert "rank 1 died" in job.errors[0]
    assert job.seconds < 10


@pytest.mark.slow
def test_forked_child_does_not_hide_the_death_of_its_rank():
    started = time.monotonic()
    job = run_ranks("fork", 1)
    assert "rank 1 died" in job.errors[0]
    assert job.codes[0] == 1
    assert time.monotonic() - started < 10


def test_mistake_of_one_rank_is_told_by_it_and_by_the_lowest_other():
    job = run_ranks("refuse", 1, ranks=3)
    assert job.codes == [1, 1, 1]
    assert job.errors[1] == "error: rank 1: cannot read image bad.jpg\n"
    assert job.errors[0] == "error: rank 1 failed: cannot read image bad.jpg\n"
    assert job.errors[2] == ""


def test_mistake_of_all_ranks_is_told_once():
    job = run_ranks("refuse", ranks=3)
    assert job.codes == [1, 1, 1]
    assert job.errors == ["error: cannot read image bad.jpg\n", "", ""]


def test_mistake_before_joining_is_told_by_rank_0_first():
    started = time.monotonic()
    job = run_ranks("early")
    assert job.codes == [1, 1]
    assert job.errors[0] == "error: no such recipe\n"
    # By then a launcher has ended it; where only this rank has the mistake, it is told.
    assert time.monotonic() - started > 3


def test_exception_of_one_rank_keeps_its_traceback():
    job = run_ranks("crash", 1)
    assert job.codes == [1, 1]
    assert job.errors[1].startswith("rank 1:\nTraceback")
    assert job.errors[1].endswith("KeyError: 'surprise'\n")
    assert job.errors[0] == "error: rank 1 failed: KeyError: 'surprise'\n"


def test_ranks_that_do_different_things_are_found_out():
    job = run_ranks("late", 1)
    assert job.codes == [1, 1]
    assert "not in step" in job.errors[0]


def test_exit_code_of_a_script_is_kept():
    job = run_ranks("exit")
    assert job.codes == [7, 7]
    assert job.errors == ["", ""]


def test_supervisor_finds_a_port_beside_a_stranger():
    name = f"test-{uuid.uuid4()}"
    with socket.create_server(("127.0.0.1", candidate_ports(f"mpirun {name}")[0])):
        job = run_ranks("nothing", job=name)
    assert job.codes == [0, 0]


def test_two_jobs_at_once_do_not_meet():
    names = [f"test-{uuid.uuid4()}" for _ in range(2)]
    assert set(candidate_ports(names[0])) != set(candidate_ports(names[1]))
    assert len(set(candidate_ports(names[0]))) == len(candidate_ports(names[0]))
    assert all(20000 <= port < 30000 for port in candidate_ports(names[0]))


def start_rank(folder: Path, *arguments: object) -> subprocess.Popen:
    """One of two ranks, whose output goes to a pipe that a launcher in between would read."""
    environment = os.environ | {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": f"test-{uuid.uuid4()}",
    }
    log = (folder / "rank.log").open("w")
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def wait_for(path: Path, seconds: float = 30) -> str:
    """The content of a file, once it has one."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} stays empty")


def test_a_rank_outlives_what_its_launcher_kills(tmp_path):
    """As msrun does at Ctrl-C: it has time to finish its step."""
    process = start_rank(tmp_path, "steps", 0, tmp_path)
    wait_for(tmp_path / "stepping")
    process.kill()
    process.wait()
    assert wait_for(tmp_path / "saved") == f"after signal {signal.SIGTERM.value}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_to_the_rank_and_its_code_back(tmp_path, number):
    process = start_rank(tmp_path, "steps", 0, tmp_path)
    wait_for(tmp_path / "stepping")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert (tmp_path / "saved").read_text() == f"after signal {number.value}"


def test_an_interrupt_of_all_ranks_is_told_once():
    job = run_ranks("interrupt", ranks=3)
    assert job.codes == [130, 130, 130]
    assert job.errors == ["interrupted\n", "", ""]


def test_an_interrupt_of_one_rank_ends_the_others():
    job = run_ranks("interrupt", 1, ranks=3)
    assert job.codes == [1, 130, 1]
    assert job.errors == ["error: rank 1 was interrupted\n", "", ""]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_mpirun_job_ends_with_a_killed_rank_and_leaves_no_process():
    started = time.monotonic()
    mark = f"mark={uuid.uuid4()}"
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    job = subprocess.run(
        [*command, sys.executable, WORKER, "kill", "1", mark],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode != 0
    assert "rank 1" in job.stderr
    assert time.monotonic() - started < 20
    assert mark not in running_commands()


def running_commands() -> str:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile
    return "\n".join(lines)
