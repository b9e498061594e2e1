"""Moving average of the weights, kept beside the optimizer's state.

Source: Polyak and Juditsky 1992, in the exponential form of Tarvainen and Valpola 2017. Running statistics of batch norms
are averaged alike, so that they belong to the averaged weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lepton_mpi.comm.contract import collective
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.network import Network

# Name of the array among the optimizer's.
EMA_SLOT = "ema"


@collective("grid.node")
def start_average(network: Network) -> None:
    """Let the average begin at the present weights, where one is kept.

    Collective over grid.node.
    """
    average = network.memory.slots.get(EMA_SLOT)
    if average is None:
        return
    ranks = network.grid.data_in_node
    first, last = split_range(average.size, ranks.Get_size(), ranks.Get_rank())
    average[first:last] = network.memory.values[first:last]
    network.grid.node.Barrier()


@contextmanager
@collective("grid.node")
def averaged_weights(network: Network) -> Iterator[None]:
    """Put the averaged weights in the place of the others for a while, where an average is kept.

    Collective over grid.node, at both ends. Between them nobody may train.
    """
    if EMA_SLOT not in network.memory.slots:
        yield
        return
    _swap(network)
    try:
        yield
    finally:
        _swap(network)


@collective("grid.node")
def _swap(network: Network) -> None:
    """Exchange the two arrays. Collective over grid.node."""
    memory, ranks = network.memory, network.grid.data_in_node
    first, last = split_range(memory.values.size, ranks.Get_size(), ranks.Get_rank())
    network.grid.node.Barrier()  # nobody still reads the old ones
    kept = memory.values[first:last].copy()
    memory.values[first:last] = memory.slots[EMA_SLOT][first:last]
    memory.slots[EMA_SLOT][first:last] = kept
    network.grid.node.Barrier()  # all parts are in place
    memory.upload()
