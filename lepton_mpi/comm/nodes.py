"""Which ranks share memory, and how the nodes that they make are numbered."""

from __future__ import annotations

from typing import cast

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.runtime.mpi import MPI


@collective("world")
def split_nodes(world: MPI.Intracomm, ranks_per_node: int) -> MPI.Intracomm:
    """Return a communicator of the ranks that share memory with this one, in the order of world.

    Collective over world.

    Args:
        world: all ranks.
        ranks_per_node: treat this many consecutive ranks as one node; 0 asks MPI.
    """
    rank = world.Get_rank()
    split = world.Split(rank // ranks_per_node, rank) if ranks_per_node else world.Split_type(MPI.COMM_TYPE_SHARED, rank)
    return cast(MPI.Intracomm, split)


@collective("world")
def number_nodes(world: MPI.Intracomm, node: MPI.Intracomm) -> tuple[int, int]:
    """Return this node's number and the count of nodes, numbered by their lowest rank in world.

    Collective over world.

    Args:
        world: all ranks.
        node: this rank's node, from `split_nodes`.
    """
    lowest = np.array([node.allreduce(world.Get_rank(), op=MPI.MIN)], np.int64)
    all_lowest = np.empty(world.Get_size(), np.int64)
    world.Allgather(lowest, all_lowest)
    nodes = np.unique(all_lowest)
    return int(np.searchsorted(nodes, lowest[0])), len(nodes)
