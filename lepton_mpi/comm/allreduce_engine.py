"""The C++ all-reduce with the communicators and the shared memory that it works on."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.comm.nodes import number_nodes, split_nodes
from lepton_mpi.compress.modes import codec_number
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import usable_cores

# How long to look without a pause where every rank has a core: longer than a wake-up by the kernel takes.
_SPIN_S = 100e-6
# Enough that links stay busy while busy cores keep a rank waiting for some milliseconds.
_MOST_CHUNKS, _LEAST_CHUNKS = 16, 4
_STAGING_MIB = 128


@final
class AllReduceEngine:
    """One rank's part of the all-reduce of a communicator.

    Attributes:
        comm: all ranks, a duplicate of what was handed in.
        node, peers: the ranks of this node, and those with the same place on other nodes.
        node_index, num_nodes, ranks_on_node: how they are spread.
        num_owners: the ranks of every node that own a slice each; owner: which slice is this rank's, or None.
    """

    @collective("comm")
    def __init__(
        self,
        comm: MPI.Intracomm,
        *,
        ranks_per_node: int,
        chunk_mib: float,
        depth: int,
        timeout_s: float,
        background: bool,
        node: MPI.Intracomm | None = None,
    ) -> None:
        """Set communicators and memory up.

        Collective over comm.

        Args:
            comm: the ranks that add up; duplicated, never communicated on.
            ranks_per_node: treat this many consecutive ranks as one node; 0 asks MPI.
            chunk_mib: longest piece of an array that moves as one, MiB.
            depth: chunks on their way at a time; 0 chooses.
            timeout_s: give up when nothing moves for this long.
            background: whether a thread makes progress between start and finish.
            node: the ranks of comm on this node, in the order of comm; duplicated. None: found by `ranks_per_node`.

        Raises:
            SharedMemoryError: the ranks of a node cannot share enough memory.
        """
        self.comm = comm.Dup()
        self.node = split_nodes(self.comm, ranks_per_node) if node is None else node.Dup()
        self.node_index, self.num_nodes = number_nodes(self.comm, self.node)
        rank, ranks = self.node.Get_rank(), self.node.Get_size()
        self.peers = self.comm.Split(rank, self.node_index)
        self.num_owners = int(self.comm.allreduce(ranks, op=MPI.MIN))
        self.ranks_on_node = ranks
        self.owner = rank if rank < self.num_owners else None
        chunk_values = max(int(chunk_mib * 2**20 / 4), 1)
        depth = depth or _choose_depth(int(self.comm.allreduce(ranks, op=MPI.MAX)), chunk_mib)
        plan = MemoryPlan()
        signal_nbytes = native.AllReduce.signal_nbytes(ranks)
        signals = plan.place(signal_nbytes)
        staging_values = native.AllReduce.staging_values(ranks, self.num_owners, chunk_values, depth)
        staging = plan.place(4 * staging_values)
        memory = NodeMemory(self.node, plan.nbytes)
        own_rank = self.comm.Get_rank()
        self.native = native.AllReduce(
            signals=memory.array(signals, signal_nbytes, np.uint8),
            staging=memory.array(staging, staging_values, np.float32),
            peers=self.peers.py2f() if self.num_nodes > 1 and self.owner is not None else None,
            rank=rank,
            node_ranks=self.node.allgather(own_rank),
            peer_ranks=self.peers.allgather(own_rank),
            num_nodes=self.num_nodes,
            num_owners=self.num_owners,
            chunk_values=chunk_values,
            depth=depth,
            timeout_s=timeout_s,
            spin_s=_SPIN_S if ranks <= usable_cores() else 0.0,
            background=background,
            world=self.comm.py2f(),
        )

    def start(
        self,
        values: NDArray[np.float32] | None,
        out: NDArray[np.float32],
        codec: str,
        residual: NDArray[np.float32] | None,
        scale: float,
        share: float = 1.0,
    ) -> int:
        """Queue the sum of an array and return its number. Local, but all ranks must start the same ones in one order.

        Args:
            values, out: float32 [n], contiguous; values None: zeros.
            codec: see `compress.modes`.
            residual: error feedback, float32 [n], or None.
            scale: of the sum.
            share: of the values that topk sends.
        """
        return self.native.start(values, out, codec_number(codec), residual, scale, share)

    def owned(self, size: int) -> slice:
        """Return the slice of an array of some size that this rank sums; empty for ranks that own none. Local."""
        if self.owner is None:
            return slice(0, 0)
        return slice(*native.AllReduce.slice(size, self.num_owners, self.owner))

    @collective("comm")
    def free(self) -> None:
        """Stop the background thread and give communicators back.

        Collective over comm.
        """
        engine: Any = self.__dict__.pop("native", None)
        del engine  # joins the thread, which uses the communicators
        for comm in (self.peers, self.node, self.comm):
            if comm != MPI.COMM_NULL:
                comm.Free()


def _choose_depth(ranks_on_node: int, chunk_mib: float) -> int:
    """Return how many chunks are on their way: each has room for every rank of the node and for the sum."""
    if ranks_on_node == 1:
        return _MOST_CHUNKS
    return min(max(int(_STAGING_MIB / (chunk_mib * (ranks_on_node + 1))), _LEAST_CHUNKS), _MOST_CHUNKS)
