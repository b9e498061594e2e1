"""The sum of gradients over the data axis, in buckets that start while the backward pass runs."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.compress.codec import make_codec
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec
from lepton_mpi.parallel.node_parameters import NodeParameters

# Buckets begin at multiples of this many values, the longest codec block.
_BLOCK = 256
# How long to poll before sleeping where every rank has a core of its own: longer than a
# wake-up by the kernel takes (about 50 us), shorter than anything a user would notice.
_SPIN_S = 100e-6


def bucket_bounds(num_values: int, bucket_mib: float) -> list[int]:
    """Return where the buckets of a flat buffer begin, and its end. Local.

    Args:
        num_values: float32 values of the buffer.
        bucket_mib: size of a bucket in MiB, rounded to whole codec blocks.
    """
    values = max(round(bucket_mib * 2**20 / 4 / _BLOCK), 1) * _BLOCK
    return [*range(0, num_values, values), num_values] if num_values else [0]


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


class GradientExchange:
    """Sum gradients over grid.data: directly in shared memory inside a node, in two phases between nodes."""

    @collective("grid.data")
    def __init__(
        self, grid: ProcessGrid, memory: NodeParameters, mode: str, bounds: list[int], timeout_s: float, spin: bool
    ) -> None:
        """Set the exchange up.

        Collective over grid.data.

        Args:
            grid: the process grid.
            memory: parameters of this rank.
            mode: codec between nodes: exact, bf16 or int8.
            bounds: see `bucket_bounds`; of the weights, without the running statistics.
            timeout_s: give up when nothing moves for this long.
            spin: poll a little before sleeping; only where ranks do not outnumber cores.
        """
        self._bounds = bounds
        self._memory = memory
        rank = grid.data_in_node.Get_rank()
        between_nodes = rank < grid.num_owners and grid.data_across.Get_size() > 1
        self._peers = grid.data_across.Dup()
        self._engine = native.Exchange(
            grads=memory.grads,
            signals=memory.signals,
            rank=rank,
            num_owners=grid.num_owners,
            peers=self._peers.py2f() if between_nodes else None,
            codec=make_codec(mode).number,
            bounds=bounds,
            timeout_s=timeout_s,
            spin_s=_SPIN_S if spin else 0.0,
        )
        self._next_bucket = self._engine.num_buckets - 1
        self._data = grid.data
        self._statistics = slice(memory.layout.statistics_start, memory.layout.num_values)
        self._own_grad = memory.grads[rank]
        extents = [self._engine.owned(b) for b in range(self._engine.num_buckets)]
        if rank == 0:  # every rank of the node knows their sums; one writes
            extents.append((self._statistics.start, self._statistics.stop))
        self.owned_slices = _cut_slices(memory.layout, extents, grid.is_first_data_node)

    def start_from(self, offset: int) -> None:
        """Start the buckets of weights that begin at or after an offset of the flat buffer; those must be complete. Local."""
        while self._next_bucket >= 0 and self._bounds[self._next_bucket] >= offset:
            bucket = self._next_bucket
            self._memory.download_grad(self._bounds[bucket], self._bounds[bucket + 1])
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
        self._engine.finish()
        self._sum_statistics()

    @collective("grid.data")
    def _sum_statistics(self) -> None:
        """Add up what the data ranks' layers change of running statistics, exactly whatever the codec.

        Collective over grid.data. They are few, complete only with the first layer, and of other sizes than gradients:
        in a block of a codec the small ones would vanish beside the large ones.
        """
        if self._statistics.start < self._statistics.stop:
            self._memory.download_grad(self._statistics.start, self._statistics.stop)
            own = self._own_grad[self._statistics]
            own[...] = sum_in_rank_order(self._data, own)

    @collective("grid.data")
    def publish(self) -> None:
        """Make updated values visible to all ranks, and wait for theirs.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """
        self._engine.publish()
        self._next_bucket = self._engine.num_buckets - 1
        self._memory.upload()

    @property
    def sent_nbytes(self) -> int:
        """Bytes that this rank has sent to other nodes so far."""
        return int(self._engine.stats["sent_nbytes"])

    @collective("grid.data")
    def free(self) -> None:
        """Give the communicator back.

        Collective over grid.data.
        """
        self._peers.Free()


def _cut_slices(layout: ParameterLayout, extents: list[tuple[int, int]], first_node: bool) -> tuple[OwnedSlice, ...]:
    """Cut owned extents from parameter to parameter."""
    slices: list[OwnedSlice] = []
    for low, high in extents:
        for block, start in zip(layout.blocks, layout.offsets, strict=True):
            begin, end = max(low, start), min(high, start + block.size)
            if begin < end:
                slices.append(OwnedSlice(begin, end, block.spec, block.is_primary and first_node))
    return tuple(slices)
