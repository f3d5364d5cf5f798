import pytest

from mindtwins.distribution.process_info import ProcessInfo, find_process_info
from mindtwins.errors import UserError

MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
    "PMIX_NAMESPACE": "prterun-node1-4711@1",
}
MSRUN = {
    "MS_ROLE": "MS_WORKER",
    "MS_WORKER_NUM": "4",
    "MS_NODE_ID": "2",
    "RANK_ID": "2",
    "MS_SCHED_HOST": "127.0.0.1",
    "MS_SCHED_PORT": "8118",
}


def test_process_on_its_own():
    assert find_process_info({}) == ProcessInfo(rank=0, size=1, launcher="")


def test_rank_of_mpirun():
    process = find_process_info(MPIRUN)
    assert (process.rank, process.size, process.launcher) == (3, 8, "mpirun")
    assert process.job == "mpirun prterun-node1-4711@1"
    assert process.one_machine


def test_ranks_of_mpirun_on_several_machines_need_an_address():
    spread = MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    with pytest.raises(UserError, match="-x MS_SCHED_HOST"):
        find_process_info(spread)
    process = find_process_info(spread | {"MS_SCHED_HOST": "10.0.0.1"})
    assert (process.host, process.one_machine) == ("10.0.0.1", False)


def test_rank_of_msrun():
    process = find_process_info(MSRUN)
    assert (process.rank, process.size, process.launcher) == (2, 4, "msrun")
    assert not process.is_scheduler
    assert process.job == find_process_info(MSRUN | {"MS_NODE_ID": "0"}).job


def test_scheduler_of_msrun():
    process = find_process_info(MSRUN | {"MS_ROLE": "MS_SCHED"})
    assert process.is_scheduler
    assert process.job == find_process_info(MSRUN).job


def test_msrun_that_does_not_number_its_ranks():
    unnumbered = {k: v for k, v in MSRUN.items() if k not in ("MS_NODE_ID", "RANK_ID")}
    with pytest.raises(UserError, match="node_rank"):
        find_process_info(unnumbered)
