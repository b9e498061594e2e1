"""The sum of gradients over the data axis, in buckets that start while the backward pass runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.machine_probe import probe_machine
from lepton_mpi.comm.reduce_choice import ReduceChoice
from lepton_mpi.compress.modes import codec_number, needs_feedback
from lepton_mpi.compress.topk import warm_up_share
from lepton_mpi.parallel.exchange import Exchange, cut_slices, sum_statistics
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import BLOCK_VALUES
from lepton_mpi.parallel.value_scales import ValueScales
from lepton_mpi.runtime.mpi import MPI, choose_progress_thread

_log = logging.getLogger(__name__)

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
class TopkShare:
    """How much of the values topk sends.

    Attributes:
        share: of all values, in (0, 1].
        warmup_steps: steps in which it falls from 25% to that, see `warm_up_share`.
    """

    share: float = 0.05
    warmup_steps: int = 0

    def at(self, step: int) -> float:
        """Return the share of a step, counted from 0. Local."""
        return warm_up_share(self.share, step, self.warmup_steps)


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
        progress_thread: str = "auto",
        topk: TopkShare | None = None,
        warmup_mode: str = "bf16",
        scales: ValueScales | None = None,
        *,
        feedback: bool = False,
    ) -> None:
        """Set the exchange up.

        Collective over grid.data.

        Args:
            grid: the process grid.
            memory: parameters of this rank, which say what it owns.
            mode: codec between nodes, see `compress.modes`; auto measures now and later which of `allow` is fastest.
            timeout_s: give up when nothing moves for this long.
            spin: poll a little before sleeping; only where ranks do not outnumber cores.
            allow: codecs that auto may choose.
            progress_thread: whether a thread moves messages between nodes meanwhile, see `choose_progress_thread`.
            topk: share of the values that topk sends; None: the default.
            warmup_mode: codec between nodes in steps that are `warming`.
            scales: by which gradients are divided before they are encoded; None: they are not.
            feedback: whether there is a residual, although the mode needs none.

        Raises:
            CodecError: the mode is no codec.
            GridError: a thread must be, but MPI does not admit it.
        """
        self._grid = grid
        codecs = (mode,) if mode != AUTO else tuple(allow) if memory.ownership.num_nodes > 1 else ("exact",)
        self._bounds = bounds = memory.ownership.bounds
        self._memory = memory
        rank = grid.data_in_node.Get_rank()
        between_nodes = rank < grid.num_owners and grid.data_across.Get_size() > 1
        self._peers = grid.data_across.Dup()
        self.residual = np.zeros(bounds[-1], np.float32) if needs_feedback(codecs) or feedback else None
        self._has_thread = choose_progress_thread(progress_thread, memory.ownership.num_nodes > 1)
        self._engine = native.Exchange(
            grads=memory.grads,
            signals=memory.signals,
            rank=rank,
            num_owners=grid.num_owners,
            peers=self._peers.py2f() if between_nodes else None,
            codec=codec_number(codecs[0]),
            bounds=bounds,
            timeout_s=timeout_s,
            spin_s=_SPIN_S if spin else 0.0,
            own_pieces=memory.ownership.pieces_differ,
            residual=self.residual,
            # Copies must get the same bits, and a codec's depend on what lies beside them.
            exact_until=memory.layout.private_start,
            background=self._has_thread and between_nodes,
        )
        self._topk = topk or TopkShare()
        self._fixed, self._warmup_mode, self._scales = codecs[0], warmup_mode, scales
        self._gaps = memory.layout.gaps(bounds[-1])
        self._own_grad = memory.grads[rank]
        self._choice = self._measure(codecs) if mode == AUTO else None
        self._way, self._has_begun = "", False
        self._next_bucket = self._engine.num_buckets - 1
        self.owned_slices = cut_slices(memory.layout, memory.ownership, grid.is_first_data_node)

    def _log_plan(self) -> None:
        """Say once for the job how gradients travel."""
        num_nodes, bounds = self._memory.ownership.num_nodes, self._bounds
        way, mover = self._way if self._choice else self._fixed, "a thread" if self._has_thread else "start and finish alone"
        _log.log(
            logging.INFO if self._grid.rank == 0 else logging.DEBUG,
            "gradient exchange: %.3g MB in %d bucket(s) of at most %.3g MB, %d node(s)%s",
            4e-6 * bounds[-1],
            self._engine.num_buckets,
            4e-6 * max((high - low for low, high in pairwise(bounds)), default=0),
            num_nodes,
            "" if num_nodes == 1 else f", {way}, moved by {mover}",
        )

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

        machine = grid.data.bcast(probe_machine(spread, codecs, self._topk.share))
        return ReduceChoice(machine, codecs, slowest, plain=False, logs=grid.rank == 0)

    @collective("grid.data")
    def _choose(self) -> None:
        """Choose the codec of the next step. Collective over grid.data. Most calls communicate nothing."""
        self._way = "fixed"
        if self._choice is not None:
            self._way = self._choice.next(4 * self._bounds[-1])

    def _begin_exchange(self) -> None:
        """Set the codec of this step, and bring what is owed to its units."""
        way = self._fixed if self._choice is None else self._way
        self._engine.set_codec(codec_number(self._warmup_mode if self.warming else way))
        if self._scales is not None and self.residual is not None and not self.warming:
            self._scales.divide_residual(self.residual)

    @collective("grid.data")
    def begin_step(self, step: int) -> None:
        """Set the share that topk sends in a step, and find the scales of values in the first one after a warm-up.

        Collective over grid.data.
        """
        self._engine.set_share(self._topk.at(step))
        if self._scales is not None and not self.warming:
            self._scales.find_scales()

    def start_from(self, offset: int) -> None:
        """Start the buckets of weights that begin at or after an offset of the flat buffer; those must be complete. Local."""
        if not self._way:  # the first step, when the log is open; nothing was measured yet to agree on
            self._choose()
            self._log_plan()
        if self._next_bucket == self._engine.num_buckets - 1 and not self._has_begun:
            self._has_begun = True
            self._begin_exchange()
        while self._next_bucket >= 0 and self._bounds[self._next_bucket] >= offset:
            bucket = self._next_bucket
            self._memory.download_grad(self._bounds[bucket], self._bounds[bucket + 1])
            if self.outgoing is not None:
                self.outgoing(self._bounds[bucket], self._bounds[bucket + 1])
            if self._scales is not None and not self.warming:
                self._scales.divide(self._bounds[bucket], self._bounds[bucket + 1])
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
        if self._choice is not None and not self.warming:  # what the backward pass did not hide
            self._choice.record(4 * self._bounds[-1], self._way, time.perf_counter() - begin)
        if self.residual is not None:
            # sign1 makes something of the zeros between weights, which no checkpoint holds, and other scales of that.
            for gap in self._gaps:
                self.residual[gap] = 0
        if self._scales is not None and self.warming:
            self._scales.learn()
        elif self._scales is not None:
            self._scales.multiply(self.residual)
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
        self._next_bucket, self._has_begun = self._engine.num_buckets - 1, False
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
