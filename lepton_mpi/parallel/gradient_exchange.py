"""The sum of gradients over the data axis, in buckets that start while the backward pass runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_mpi import native
from lepton_mpi.comm.allreduce_engine import FEEDBACK_CODECS
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.machine_probe import probe_machine
from lepton_mpi.comm.reduce_choice import ReduceChoice
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.compress.codec import make_codec
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec
from lepton_mpi.parallel.extra_state import ExtraState
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import BLOCK_VALUES, Ownership
from lepton_mpi.runtime.mpi import MPI

# How long to poll before sleeping where every rank has a core of its own: longer than a
# wake-up by the kernel takes (about 50 us), shorter than anything a user would notice.
_SPIN_S = 100e-6
AUTO = "auto"


def bucket_bounds(num_values: int, bucket_mib: float, first: int = 0) -> list[int]:
    """Return where the buckets of a flat buffer begin, and its end. Local.

    Args:
        num_values: float32 values of the buffer.
        bucket_mib: size of a bucket in MiB, rounded to whole codec blocks.
        first: a multiple of the codec block at which a bucket must begin.
    """
    values = max(round(bucket_mib * 2**20 / 4 / BLOCK_VALUES), 1) * BLOCK_VALUES
    return sorted({*range(0, first, values), *range(first, num_values, values), num_values})


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

    A step is: `start_from` as gradients become complete, `finish`, the update of the owned slices, `publish`.

    Attributes:
        owned_slices: what this rank is to update.
        outgoing: called with start and stop of a bucket before it starts, when this rank's gradient of it is complete, to change
            that gradient in place; None: nothing is changed. A step sets it before its first bucket starts.
        extra_states: state of the exchange that a checkpoint must hold.
    """

    owned_slices: tuple[OwnedSlice, ...]
    outgoing: Callable[[int, int], None] | None = None
    extra_states: tuple[ExtraState, ...] = ()

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


@dataclass(frozen=True)
class _Spread:
    """See `machine_probe.Spread`."""

    comm: MPI.Intracomm
    node: MPI.Intracomm
    peers: MPI.Intracomm
    num_nodes: int
    num_owners: int
    owner: int | None


class GradientExchange(Exchange):
    """Sum gradients directly in shared memory inside a node, in two phases between nodes.

    Attributes:
        residual: what codecs with error feedback have not sent yet, float32, as long as the weights; None without.
    """

    @collective("grid.data")
    def __init__(
        self,
        grid: ProcessGrid,
        memory: NodeParameters,
        mode: str,
        timeout_s: float,
        spin: bool,
        allow: Sequence[str] = ("exact", "bf16"),
    ) -> None:
        """Set the exchange up.

        Collective over grid.data.

        Args:
            grid: the process grid.
            memory: parameters of this rank, which say what it owns.
            mode: codec between nodes, see `make_codec`; auto measures now and later which of `allow` is fastest.
            timeout_s: give up when nothing moves for this long.
            spin: poll a little before sleeping; only where ranks do not outnumber cores.
            allow: codecs that auto may choose.
        """
        self._grid = grid
        codecs = (mode,) if mode != AUTO else tuple(allow) if memory.ownership.num_nodes > 1 else ("exact",)
        self._bounds = bounds = memory.ownership.bounds
        self._memory = memory
        rank = grid.data_in_node.Get_rank()
        between_nodes = rank < grid.num_owners and grid.data_across.Get_size() > 1
        self._peers = grid.data_across.Dup()
        self.residual = np.zeros(bounds[-1], np.float32) if FEEDBACK_CODECS & set(codecs) else None
        self._engine = native.Exchange(
            grads=memory.grads,
            signals=memory.signals,
            rank=rank,
            num_owners=grid.num_owners,
            peers=self._peers.py2f() if between_nodes else None,
            codec=make_codec(codecs[0]).number,
            bounds=bounds,
            timeout_s=timeout_s,
            spin_s=_SPIN_S if spin else 0.0,
            own_pieces=memory.ownership.pieces_differ,
            residual=self.residual,
            # Copies must get the same bits, and a codec's depend on what lies beside them.
            exact_until=memory.layout.private_start,
        )
        self._choice = self._measure(codecs) if mode == AUTO else None
        self._way = ""
        self._next_bucket = self._engine.num_buckets - 1
        self.owned_slices = cut_slices(memory.layout, memory.ownership, grid.is_first_data_node)

    @collective("grid.data")
    def _measure(self, codecs: tuple[str, ...]) -> ReduceChoice:
        """Measure the machine and begin to choose. Collective over grid.data."""
        grid, ownership = self._grid, self._memory.ownership
        owner = ownership.rank if ownership.rank < ownership.num_owners else None
        spread = _Spread(grid.data, grid.data_in_node, self._peers, ownership.num_nodes, ownership.num_owners, owner)

        def slowest(seconds: list[float]) -> list[float]:
            values = np.array(seconds)
            grid.data.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
            return [float(s) for s in grid.data.bcast(values)]

        machine = grid.data.bcast(probe_machine(spread, codecs))
        return ReduceChoice(machine, codecs, slowest, plain=False, logs=grid.rank == 0)

    @collective("grid.data")
    def _choose(self) -> None:
        """Choose the codec of the next step. Collective over grid.data. Most calls communicate nothing."""
        self._way = "fixed"
        if self._choice is not None:
            self._way = self._choice.next(4 * self._bounds[-1])
            self._engine.set_codec(make_codec(self._way).number)

    def start_from(self, offset: int) -> None:
        """Start the buckets of weights that begin at or after an offset of the flat buffer; those must be complete. Local."""
        if not self._way:  # the first step, when the log is open; nothing was measured yet to agree on
            self._choose()
        while self._next_bucket >= 0 and self._bounds[self._next_bucket] >= offset:
            bucket = self._next_bucket
            self._memory.download_grad(self._bounds[bucket], self._bounds[bucket + 1])
            if self.outgoing is not None:
                self.outgoing(self._bounds[bucket], self._bounds[bucket + 1])
            self._engine.start(bucket)
            self._next_bucket -= 1

    @collective("grid.data")
    def finish(self) -> None:
        """Wait until the reduced gradients of the owned slices lie in the own gradient buffer.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """
        self.start_from(0)
        begin = time.perf_counter()
        self._engine.finish()
        if self._choice is not None:  # what the backward pass did not hide
            self._choice.record(4 * self._bounds[-1], self._way, time.perf_counter() - begin)
        sum_statistics(self._grid, self._memory)

    @collective("grid.data")
    def publish(self) -> None:
        """Make updated values visible to all ranks, and wait for theirs; those of other nodes come as fp32, whatever the codec.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """
        self._memory.gather_values(self._grid)
        self._engine.publish()
        self._next_bucket = self._engine.num_buckets - 1
        self._memory.upload()
        self._choose()

    @property
    def sent_nbytes(self) -> int:
        """Bytes that this rank has sent to other nodes so far."""
        return int(self._engine.stats["sent_nbytes"]) + self._memory.sent_nbytes

    @collective("grid.data")
    def free(self) -> None:
        """Give the communicator back.

        Collective over grid.data.
        """
        self._peers.Free()


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
