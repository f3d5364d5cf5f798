"""Which of a job's processes this one is, as the launcher's environment variables say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mindtwins.errors import UserError


@dataclass(frozen=True)
class ProcessInfo:
    """What a process knows of its job and of its own number in it.

    Attributes:
        rank: 0 to size - 1; of no meaning in msrun's scheduler process.
        size: number of ranks; 1 for a process that was started alone.
        launcher: "mpirun", "msrun", or "" for a process that was started alone.
        job: a name of the job that all its processes agree on, and that no other job has.
        host: the machine of rank 0 and of the supervisor, by a name that all ranks reach it by.
        one_machine: whether all ranks run on this machine.
        is_scheduler: this is the process that msrun adds to the ranks, for MindSpore's scheduler.
    """

    rank: int = 0
    size: int = 1
    launcher: str = ""
    job: str = ""
    host: str = "127.0.0.1"
    one_machine: bool = True
    is_scheduler: bool = False


def find_process_info(environment: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Read from the environment what mpirun or msrun told this process.

    Raises:
        UserError: ranks on several machines, and the launcher was not told what they need.
    """
    # msrun first: it may itself have been started by mpirun, once per machine.
    if "MS_ROLE" in environment:
        return _from_msrun(environment)
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return _from_mpirun(environment)
    return ProcessInfo()


def _from_msrun(environment: Mapping[str, str]) -> ProcessInfo:
    size = int(environment.get("MS_WORKER_NUM", 1))
    host = environment.get("MS_SCHED_HOST", "127.0.0.1")
    is_scheduler = environment["MS_ROLE"] == "MS_SCHED"
    rank = environment.get("MS_NODE_ID", environment.get("RANK_ID"))
    if rank is None and size > 1 and not is_scheduler:
        raise UserError(
            "msrun did not number the ranks: with several machines, give each its --node_rank"
        )
    return ProcessInfo(
        rank=int(rank or 0),
        size=size,
        launcher="msrun",
        job=f"msrun {host}:{environment.get('MS_SCHED_PORT')}",
        host=host,
        one_machine=host in ("127.0.0.1", "localhost"),
        is_scheduler=is_scheduler,
    )


def _from_mpirun(environment: Mapping[str, str]) -> ProcessInfo:
    size = int(environment["OMPI_COMM_WORLD_SIZE"])
    local_size = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", size))
    host = environment.get("MS_SCHED_HOST", "127.0.0.1")
    if local_size < size and "MS_SCHED_HOST" not in environment:
        raise UserError(
            "mpirun started ranks on several machines: name the one of rank 0, by an address that "
            "the others reach, with `mpirun -x MS_SCHED_HOST=<address> ...`"
        )
    # Open MPI's name of the job: its host and process number are in it.
    name = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid", "")
    return ProcessInfo(
        rank=int(environment["OMPI_COMM_WORLD_RANK"]),
        size=size,
        launcher="mpirun",
        job=f"mpirun {name}",
        host=host,
        one_machine=local_size == size,
    )
