"""What an exchange of gradients over the data axis is, and what all kinds of it have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec
from lepton_mpi.parallel.extra_state import ExtraState
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import Ownership


@dataclass(frozen=True)
class OwnedSlice:
    """A run of the flat buffer whose reduced gradient and update belong to this rank.

    Attributes:
        start, stop: where it lies.
        spec: the parameter that it belongs to.
        counts: whether it counts here in sums over the whole grid; a replicated parameter counts once.
    """

    start: int
    stop: int
    spec: ParameterSpec
    counts: bool


class Exchange(ABC):
    """Sum gradients over grid.data, and make what the owners of slices do with the sums visible to all.

    A step is: `begin_step`, `start_from` as gradients become complete, `finish`, the update of the owned slices, `publish`.

    Attributes:
        owned_slices: what this rank is to update.
        outgoing: called with start and stop of a bucket before it starts, when this rank's gradient of it is complete, to change
            that gradient in place; None: nothing is changed. A step sets it before its first bucket starts.
        extra_states: state of the exchange that a checkpoint must hold.
        warming: whether sums still travel in nearly full precision, before a codec with error feedback begins. A step sets it
            before `begin_step`, on all ranks alike.
    """

    owned_slices: tuple[OwnedSlice, ...]
    outgoing: Callable[[int, int], None] | None = None
    extra_states: tuple[ExtraState, ...] = ()
    warming: bool = False

    @abstractmethod
    @collective("grid.data")
    def begin_step(self, step: int) -> None:
        """Learn that the gradients of a step come next; it may be done again.

        Collective over grid.data. Most steps communicate nothing.

        Args:
            step: its number, from 0, the same on all ranks.
        """

    @abstractmethod
    def start_from(self, offset: int) -> None:
        """Start the buckets of weights that begin at or after an offset of the flat buffer; those must be complete. Local."""

    @abstractmethod
    @collective("grid.data")
    def finish(self) -> None:
        """Wait until the reduced gradients of the owned slices lie in the own gradient buffer.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """

    @abstractmethod
    @collective("grid.data")
    def publish(self) -> None:
        """Make updated values visible to all ranks, and wait for theirs; those of other nodes come as fp32, whatever the codec.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """

    @property
    @abstractmethod
    def sent_nbytes(self) -> int:
        """Bytes that this rank has sent to other nodes so far."""

    @abstractmethod
    @collective("grid.data")
    def free(self) -> None:
        """Give all communicators back.

        Collective over grid.data.
        """


def cut_slices(layout: ParameterLayout, ownership: Ownership, first_node: bool) -> tuple[OwnedSlice, ...]:
    """Return what a rank owns, cut from parameter to parameter. Local.

    Args:
        layout: where the parameters lie.
        ownership: what the rank owns.
        first_node: whether this node's copy counts of what all nodes hold alike.
    """
    slices: list[OwnedSlice] = []
    for low, high in ownership.owned:
        alone = ownership.pieces_differ and high <= layout.statistics_start
        for block, start in zip(layout.blocks, layout.offsets, strict=True):
            begin, end = max(low, start), min(high, start + block.size)
            if begin < end:
                slices.append(OwnedSlice(begin, end, block.spec, block.is_primary and (alone or first_node)))
    return tuple(slices)


@collective("grid.data")
def sum_statistics(grid: ProcessGrid, memory: NodeParameters) -> None:
    """Add up what the data ranks' layers change of running statistics, exactly whatever the codec.

    Collective over grid.data. They are few, complete only with the first layer, and of other sizes than gradients:
    in a block of a codec the small ones would vanish beside the large ones.
    """
    start, stop = memory.layout.statistics_start, memory.layout.num_values
    if start < stop:
        memory.download_grad(start, stop)
        own = memory.grads[grid.data_in_node.Get_rank()][start:stop]
        own[...] = sum_in_rank_order(grid.data, own)
