"""`CompressedAllreduce`: sum float32 arrays over ranks, exactly or compressed, in any mpi4py program.

Nothing here imports MPI before an object is made: the program that uses it starts MPI in its own way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.cost_model import PLAIN
from lepton_mpi.comm.host_arrays import check_arrays, download, flat_view, host_buffer
from lepton_mpi.comm.pending_sum import EngineSum, Pending, PlainSum
from lepton_mpi.compress.modes import MODES, POWERSGD, needs_feedback
from lepton_mpi.errors import CodecError

if TYPE_CHECKING:
    from lepton_mpi.comm.reduce_choice import ReduceChoice
    from lepton_mpi.runtime.mpi import MPI

AUTO = "auto"
# Measured at 1 Gbit/s and on one node, see docs/compressed_allreduce.md.
_CHUNK_MIB = 2.0
# What follows a name in the feedback state, where it holds the factors of powersgd.
_FACTORS = "/factors"


@dataclass
class _Buffers:
    """What an array needs from one call to the next."""

    residual: NDArray[np.float32] | None = None
    host: NDArray[np.float32] | None = None


@final
class CompressedAllreduce:
    """Sum float32 arrays over all ranks of a communicator; every rank ends with the same bytes.

    Inside a node sums are exact, through shared memory and in rank order; between nodes, values travel in a codec.

        from lepton_mpi.comm import CompressedAllreduce
        allreduce = CompressedAllreduce(comm, "int8")
        allreduce(gradient)
    """

    @collective("comm")
    def __init__(
        self,
        comm: MPI.Intracomm,
        codec: str = "int8",
        *,
        allow: Sequence[str] = ("exact", "bf16"),
        feedback: bool | None = None,
        share: float = 0.05,
        rank: int = 4,
        average: bool = False,
        ranks_per_node: int = 0,
        chunk_mib: float = _CHUNK_MIB,
        depth: int = 0,
        timeout_s: float = 300.0,
        background: bool = False,
    ) -> None:
        """Set communicators and shared memory up.

        Collective over comm.

        Args:
            comm: the ranks that add up; duplicated, never communicated on.
            codec: what travels between nodes: exact, bf16, fp16, int8, int4, sign1, topk, or with powersgd the factors of matrices.
                auto: this machine is measured now, for less than a second, and later sums are watched, and for every size the
                fastest way is chosen among MPI_Allreduce itself and the codecs of `allow`; compression only where it saves a
                tenth. Log messages say what was chosen. With plain MPI_Allreduce it is the MPI library that has to give all ranks
                the same bytes.
            allow: codecs that auto may choose; powersgd is none, as what it costs depends on shapes.
            feedback: whether what a codec loses is added to the next sum of the same name (Seide et al., 2014). None: for
                int4, sign1, topk and powersgd, which need it, and where auto may choose them.
            share: of the values that topk sends, in (0, 1]; see the attribute.
            rank: columns of the factors of powersgd.
            average: divide sums by the number of ranks.
            ranks_per_node: treat this many consecutive ranks as one node; 0 asks MPI.
            chunk_mib: longest piece of an array that moves as one, MiB.
            depth: chunks on their way at a time; 0: 16, or as many as fit into 128 MiB of shared memory, but at least 4.
            timeout_s: give up when nothing moves for this long, seconds.
            background: let a thread make progress between `start` and `finish`; MPI must have been started with
                MPI_THREAD_MULTIPLE, as mpi4py does unless told otherwise.

        Raises:
            CodecError: there is no such codec, a number is out of its range, or MPI allows no background thread.
            SharedMemoryError: the ranks of a node cannot share enough memory; `ranks_per_node=1` does without.
        """
        from lepton_mpi.comm.allreduce_engine import AllReduceEngine
        from lepton_mpi.comm.low_rank_sum import LowRankSums
        from lepton_mpi.compress.low_rank import check_rank
        from lepton_mpi.runtime.mpi import MPI

        codecs = tuple(allow) if codec == AUTO else (codec,)
        for name in codecs:
            if name not in MODES:
                raise CodecError(f"expected a codec among {', '.join(MODES)}, or {AUTO}, received {name!r}")
        if codec == AUTO and POWERSGD in codecs:
            raise CodecError("auto cannot choose powersgd, whose cost depends on the shapes of arrays: leave it out of allow")
        check_rank(rank)
        self.share = share
        if background and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise CodecError("background=True needs MPI started with MPI_THREAD_MULTIPLE; leave it out, or call progress()")
        self._engine = AllReduceEngine(
            comm, ranks_per_node=ranks_per_node, chunk_mib=chunk_mib, depth=depth, timeout_s=timeout_s, background=background
        )
        self._codec = codec
        self._feedback = needs_feedback(codecs) if feedback is None else feedback
        self._low_rank = LowRankSums(self._engine, rank, 1.0 / comm.Get_size() if average else 1.0)
        self._scale = 1.0 / comm.Get_size() if average else 1.0
        self._buffers: dict[str, _Buffers] = {}
        self._choice = self._measure(codecs) if codec == AUTO else None
        self._short_sum = self._engine.native.short_sum

    @collective("comm")
    def _measure(self, codecs: tuple[str, ...]) -> ReduceChoice:
        """Measure the machine and begin to choose. Collective over comm."""
        from lepton_mpi.comm.machine_probe import probe_machine
        from lepton_mpi.comm.reduce_choice import ReduceChoice
        from lepton_mpi.runtime.mpi import MPI

        comm = self._engine.comm

        def slowest(seconds: list[float]) -> list[float]:
            values = np.array(seconds)
            comm.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
            return [float(s) for s in comm.bcast(values)]

        machine = comm.bcast(probe_machine(self._engine, codecs, self._share))
        # On one node nothing is encoded, so that all codecs are one.
        allowed = codecs if machine.num_nodes > 1 else ("exact",) if "exact" in codecs else codecs[:1]
        return ReduceChoice(machine, allowed, slowest, logs=comm.Get_rank() == 0)

    @property
    def share(self) -> float:
        """Share of the values that topk sends of arrays that are started from now on; all ranks set it alike."""
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise CodecError(f"share of the values that topk sends: expected a number in (0, 1], received {share}")
        self._share = share

    def choice(self, nbytes: int) -> str:
        """Return what sums of so many bytes travel in: a codec, or plain for MPI_Allreduce. Local."""
        return self._choice.chosen(nbytes) if self._choice else self._codec

    @collective("comm")
    def __call__(self, values: Any, out: Any = None, *, name: str = "", shapes: Sequence[tuple[int, ...]] | None = None) -> None:
        """Sum an array over all ranks and wait for it: `start` and `finish` in one.

        Collective over comm.
        """
        if out is None and self._short_sum(values):  # ranks that must copy first take the long way to the same messages
            return
        begin = time.perf_counter()
        pending = self._start(values, out, name, shapes, blocking=True)
        pending.finish()
        if self._choice is not None:
            # Of sums that begin and end in one go: others wait for the program between their two ends.
            self._choice.record(pending.nbytes, pending.way, time.perf_counter() - begin)
            if not self._feedback:
                count = self._choice.settled(pending.nbytes, pending.way)
                self._engine.native.settle(pending.nbytes // 4, pending.way == PLAIN, self._scale, count)

    @collective("comm")
    def start(self, values: Any, out: Any = None, *, name: str = "", shapes: Sequence[tuple[int, ...]] | None = None) -> Pending:
        """Begin to sum an array; neither it nor `out` may be touched until the sum is finished.

        Collective over comm. All ranks start the same sums in the same order, but need not wait for each other here. With powersgd
        the second half of a sum happens when it is finished, so that all ranks finish their sums in the same order, too.

        Args:
            values: float32 array, NumPy or CuPy, of one size on all ranks; None: this rank adds zeros.
            out: array of that size and kind for the sum; None: the sum replaces `values`.
            name: of the array, where there are several: what a codec loses is kept by name.
            shapes: of the arrays that lie in it one after the other, for powersgd; None: its own.

        Returns:
            The sum on its way.

        Raises:
            CodecError: the arrays are not float32, of different sizes, or out is missing; with powersgd also where a name comes
                with other shapes, or before its last sum is finished.
        """
        return self._start(values, out, name, shapes, blocking=False)

    @collective("comm")
    def _start(self, values: Any, out: Any, name: str, shapes: Sequence[tuple[int, ...]] | None, blocking: bool) -> EngineSum:
        """See `start`; a blocking sum may be complete at the end. Collective over comm."""
        out = values if out is None else out
        check_arrays(values, out)
        buffers = self._buffers.setdefault(name, _Buffers())
        residual = self._residual_of(buffers, name, int(out.size)) if self._feedback else None
        source, target = flat_view(values), flat_view(out)
        if target is None or (values is not None and source is None):
            host = buffers.host = host_buffer(buffers.host, int(out.size))
            if values is not None:
                download(values, host)
            source, target = None if values is None else host, host
        codec = self._choose(target.size) if self._choice else self._codec
        later = (target, out) if target is buffers.host else None
        if codec == POWERSGD and self._engine.num_nodes > 1:
            _fill(target, source)
            low_rank = self._low_rank.begin(name, tuple(shapes or (tuple(out.shape),)), target, residual)
            return EngineSum(low_rank, 0, later, codec, 4 * target.size)
        return self._begin(source, target, codec, residual, later, blocking)

    def _choose(self, size: int) -> str:
        """Return the way of the next sum; those that were done meanwhile without asking count, too."""
        assert self._choice is not None
        for seconds in self._engine.native.unsettle(size):
            self._choice.count(4 * size, seconds)
        return self._choice.next(4 * size)

    def _begin(
        self,
        source: NDArray[np.float32] | None,
        target: NDArray[np.float32],
        codec: str,
        residual: NDArray[np.float32] | None,
        later: tuple[NDArray[np.float32], Any] | None,
        blocking: bool,
    ) -> EngineSum:
        if codec != PLAIN:
            travels = "exact" if codec == POWERSGD else codec  # on one node all sums are exact
            number = self._engine.start(source, target, travels, residual, self._scale, self._share)
            return EngineSum(self._engine.native, number, later, codec, 4 * target.size)
        _fill(target, source)
        if residual is not None:  # what a codec lost before goes along
            owed = residual[self._engine.owned(residual.size)]
            mine = target[self._engine.owned(residual.size)]
            mine += owed
            owed.fill(0)
        return EngineSum(PlainSum(self._engine.comm, target, self._scale, blocking), 0, later, codec, 4 * target.size)

    def progress(self) -> None:
        """Move sums along that were started, without waiting. Local."""
        self._engine.native.progress()

    def _residual_of(self, buffers: _Buffers, name: str, size: int) -> NDArray[np.float32]:
        if buffers.residual is None:
            buffers.residual = np.zeros(size, np.float32)
        if buffers.residual.size != size:
            raise CodecError(
                f"array {name!r}: expected {buffers.residual.size} values, as before, received {size}: what a codec lost belongs "
                "to one array, so give every array a name of its own"
            )
        return buffers.residual

    @collective("comm")
    def feedback_state(self) -> dict[str, NDArray[np.float32]]:
        """Return what is still owed of every named array: the sum over all ranks of what was lost and not yet sent.

        Collective over comm. It does not depend on the number of ranks that `load_feedback_state` is called with. With powersgd
        the factors that the next sums start from come as further arrays, named "<name>/factors".
        """
        from lepton_mpi.comm.reduction import sum_in_rank_order

        kept = {name: b.residual for name, b in sorted(self._buffers.items()) if b.residual is not None}
        state = {name: sum_in_rank_order(self._engine.comm, residual).copy() for name, residual in kept.items()}
        return state | {name + _FACTORS: factors for name, factors in self._low_rank.state().items()}

    @collective("comm")
    def load_feedback_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take over what `feedback_state` returned, here or in a job of another number of ranks.

        Collective over comm.
        """
        first_node = self._engine.node_index == 0
        for name, owed in state.items():
            if name.endswith(_FACTORS):
                self._low_rank.load(name.removesuffix(_FACTORS), owed)
                continue
            residual = np.zeros(owed.size, np.float32)
            if first_node:
                mine = self._engine.owned(owed.size)
                residual[mine] = owed.reshape(-1)[mine]
            self._buffers.setdefault(name, _Buffers()).residual = residual

    def forget(self, name: str) -> None:
        """Drop what is kept of a named array, what is owed of it included. Local, but all ranks must, alike."""
        self._buffers.pop(name, None)
        self._low_rank.forget(name)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, as far as ranks share memory."""
        return self._engine.num_nodes

    @property
    def sent_nbytes(self) -> int:
        """Bytes that this rank has sent to other nodes so far."""
        return self._engine.native.sent_nbytes

    @collective("comm")
    def free(self) -> None:
        """Give communicators and memory back; the object must not be used afterwards.

        Collective over comm.
        """
        del self._short_sum  # it holds the engine, whose thread uses the communicators
        self._engine.free()


def _fill(target: NDArray[np.float32], source: NDArray[np.float32] | None) -> None:
    """Bring this rank's terms to where their sum is to be; None: zeros."""
    if source is None:
        target.fill(0)
    elif source is not target:
        target[:] = source
