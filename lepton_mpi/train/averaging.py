"""Moving average of the weights, kept beside the optimizer's state.

Source: Polyak and Juditsky 1992, in the exponential form of Tarvainen and Valpola 2017. Running statistics of batch norms
are averaged alike, so that they belong to the averaged weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lepton_mpi.comm.contract import collective
from lepton_mpi.train.network import Network

# Name of the array among the optimizer's.
EMA_SLOT = "ema"


@collective("grid.node")
def start_average(network: Network) -> None:
    """Let the average begin at the present weights, where one is kept.

    Collective over grid.node.
    """
    memory = network.memory
    average = memory.slots.get(EMA_SLOT)
    if average is None:
        return
    for start, stop in memory.ownership.owned:
        average[memory.slot_range(start, stop)] = memory.values[start:stop]
    network.grid.node.Barrier()


@contextmanager
@collective("grid.world")
def averaged_weights(network: Network) -> Iterator[None]:
    """Put the averaged weights in the place of the others for a while, where an average is kept.

    Collective over grid.world, at both ends. Between them nobody may train.
    """
    if EMA_SLOT not in network.memory.slots:
        yield
        return
    _swap(network)
    try:
        yield
    finally:
        _swap(network)


@collective("grid.world")
def _swap(network: Network) -> None:
    """Exchange the two arrays. Collective over grid.world. Nodes that keep a part of the average each give it to the others."""
    memory, node = network.memory, network.grid.node
    average = memory.slots[EMA_SLOT]
    memory.settle()
    node.Barrier()  # nobody still reads the old ones
    for start, stop in memory.ownership.owned:
        here = memory.slot_range(start, stop)
        kept = memory.values[start:stop].copy()
        memory.values[start:stop] = average[here]
        average[here] = kept
    memory.gather_values(network.grid)
    node.Barrier()  # all parts are in place
    memory.upload()
