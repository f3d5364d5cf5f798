"""The ranks of a run, in MindSpore."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank, init

from mindtwins.console import notices
from mindtwins.distribution.connection import Connection
from mindtwins.distribution.launch import current_connection
from mindtwins.distribution.process_info import find_process_info
from mindtwins.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: 0 to size - 1; rank 0 prints and writes.
        size: number of processes.
        connection: connection to the others; None for a lone process.
    """

    rank: int = 0
    size: int = 1
    connection: Connection | None = field(default=None, repr=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def launched_by(self, python: str) -> list[str]:
        """What stood before the script's name in the command line, as far as that is known.

        Args:
            python: how the interpreter was called.
        """
        if self.connection is None:
            return [python]
        if self.connection.process.launcher == "msrun":
            return ["msrun", f"--worker_num={self.size}", "..."]
        return ["mpirun", "-n", str(self.size), python]

    def exchange(self, label: str, payload: bytes = b"") -> list[bytes]:
        """Every rank's bytes, in the order of the ranks; see `Connection.exchange`.

        Not for gradients: it goes through one process. It works on any device, is exact for any
        type, and raises when a rank is lost.

        Raises:
            RankLost: another rank failed.
        """
        return [payload] if self.connection is None else self.connection.exchange(label, payload)

    def largest(self, label: str, number: int) -> int:
        """The largest of every rank's number."""
        return max(int(there) for there in self.exchange(label, b"%d" % number))

    def total(self, label: str, number: float) -> float:
        """The sum of every rank's number."""
        return sum(json.loads(there) for there in self.exchange(label, json.dumps(number).encode()))

    def ranks_here(self) -> int:
        """How many ranks run on this machine, this one included."""
        name = socket.gethostname().encode()
        return self.exchange("machine", name).count(name)

    def mean_over_ranks(self) -> nn.Cell | None:
        """The cell that averages gradients; None for a lone process."""
        return None if self.size == 1 else MeanOverRanks(self.size)


_mean = ops.MultitypeFuncGraph("mean")


@_mean.register("Function", "Number", "Tensor")
def _mean_of_one(total, factor, tensor):
    return total(tensor) * factor


class MeanOverRanks(nn.Cell):
    """Averages each of a tuple of float32 tensors over the ranks.

    MindSpore runs reductions in the order of the graph, the same on all ranks. (One reduction of
    all tensors joined to a vector takes as long to run, and 20 times as long to compile.)

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.factor = 1 / size
        self.total = ops.AllReduce(ops.ReduceOp.SUM)
        self.map = ops.HyperMap()

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.map(ops.partial(_mean, self.total, self.factor), tensors)


def join_world(distribute: bool) -> World:
    """Set MindSpore up among the ranks that `launch.begin` joined; the device is already set.

    Raises:
        UserError: several processes were started, but `launch.begin` was not called in time.
        RankLost: another rank failed.
    """
    connection = current_connection()
    if connection is None:
        if distribute and find_process_info().size > 1:
            raise UserError(
                "one of several processes, but the script did not call distribution.launch.begin "
                "before it imported MindSpore: start it alone"
            )
        return World()
    if connection.scheduler is not None:
        connection.wait_for_scheduler()
    init()
    if (get_rank(), get_group_size()) != (connection.rank, connection.size):
        raise UserError(
            f"MindSpore takes this process for rank {get_rank()} of {get_group_size()}, the "
            f"launcher for rank {connection.rank} of {connection.size}: start the job with one "
            "launcher only"
        )
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=connection.size
    )
    if connection.rank > 0:
        notices.disabled = True  # rank 0 gives the same ones
    return World(connection.rank, connection.size, connection)
