"""`CompressedAllreduce`: sum float32 arrays over ranks, exactly or compressed, in any mpi4py program.

Nothing here imports MPI before an object is made: the program that uses it starts MPI in its own way.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.cost_model import PLAIN
from lepton_mpi.errors import CodecError

if TYPE_CHECKING:
    from lepton_mpi.comm.reduce_choice import ReduceChoice
    from lepton_mpi.runtime.mpi import MPI

AUTO = "auto"
# Values in one MPI_Allreduce: MPI counts in int.
_LONGEST_PLAIN = 2**30
# Measured at 1 Gbit/s and on one node, see docs/compressed_allreduce.md.
_CHUNK_MIB = 2.0


class Pending(Protocol):
    """A sum on its way."""

    def finish(self) -> None:
        """Wait until the sum is in the output array. Local; may be called again."""

    def done(self) -> bool:
        """Return whether it is there, without waiting. Local."""


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
            codec: what travels between nodes: exact, bf16, fp16, int8, int4 or sign1. auto: this machine is measured now, for
                less than a second, and later sums are watched, and for every size the fastest way is chosen among MPI_Allreduce
                itself and the codecs of `allow`; compression only where it saves a tenth. Log messages say what was chosen.
                With plain MPI_Allreduce it is the MPI library that has to give all ranks the same bytes.
            allow: codecs that auto may choose.
            feedback: whether what a codec loses is added to the next sum of the same name (Seide et al., 2014). None: for
                int4 and sign1, which need it, and where auto may choose them.
            average: divide sums by the number of ranks.
            ranks_per_node: treat this many consecutive ranks as one node; 0 asks MPI.
            chunk_mib: longest piece of an array that moves as one, MiB.
            depth: chunks on their way at a time; 0: 16, or as many as fit into 128 MiB of shared memory, but at least 4.
            timeout_s: give up when nothing moves for this long, seconds.
            background: let a thread make progress between `start` and `finish`; MPI must have been started with
                MPI_THREAD_MULTIPLE, as mpi4py does unless told otherwise.

        Raises:
            CodecError: there is no such codec, or MPI allows no background thread.
            SharedMemoryError: the ranks of a node cannot share enough memory; `ranks_per_node=1` does without.
        """
        from lepton_mpi.comm.allreduce_engine import CODEC_NUMBERS, FEEDBACK_CODECS, AllReduceEngine
        from lepton_mpi.runtime.mpi import MPI

        codecs = tuple(allow) if codec == AUTO else (codec,)
        for name in codecs:
            if name not in CODEC_NUMBERS:
                raise CodecError(f"expected a codec among {', '.join(CODEC_NUMBERS)}, or {AUTO}, received {name!r}")
        if background and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise CodecError("background=True needs MPI started with MPI_THREAD_MULTIPLE; leave it out, or call progress()")
        self._engine = AllReduceEngine(
            comm, ranks_per_node=ranks_per_node, chunk_mib=chunk_mib, depth=depth, timeout_s=timeout_s, background=background
        )
        self._codec = codec
        self._feedback = bool(FEEDBACK_CODECS & set(codecs)) if feedback is None else feedback
        self._scale = 1.0 / comm.Get_size() if average else 1.0
        self._buffers: dict[str, _Buffers] = {}
        self._choice = self._measure(codecs) if codec == AUTO else None

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

        machine = comm.bcast(probe_machine(self._engine, codecs))
        # On one node nothing is encoded, so that all codecs are one.
        allowed = codecs if machine.num_nodes > 1 else ("exact",) if "exact" in codecs else codecs[:1]
        return ReduceChoice(machine, allowed, slowest, logs=comm.Get_rank() == 0)

    def choice(self, nbytes: int) -> str:
        """Return what sums of so many bytes travel in: a codec, or plain for MPI_Allreduce. Local."""
        return self._choice.chosen(nbytes) if self._choice else self._codec

    @collective("comm")
    def __call__(self, values: Any, out: Any = None, *, name: str = "") -> None:
        """Sum an array over all ranks and wait for it: `start` and `finish` in one.

        Collective over comm.
        """
        begin = time.perf_counter()
        pending = self._start(values, out, name, blocking=True)
        pending.finish()
        if self._choice is not None:
            # Of sums that begin and end in one go: others wait for the program between their two ends.
            self._choice.record(pending.nbytes, pending.way, time.perf_counter() - begin)

    @collective("comm")
    def start(self, values: Any, out: Any = None, *, name: str = "") -> Pending:
        """Begin to sum an array; neither it nor `out` may be touched until the sum is finished.

        Collective over comm. All ranks start the same sums in the same order, but need not wait for each other here.

        Args:
            values: float32 array, NumPy or CuPy, of one size on all ranks; None: this rank adds zeros.
            out: array of that size and kind for the sum; None: the sum replaces `values`.
            name: of the array, where there are several: what a codec loses is kept by name.

        Returns:
            The sum on its way.

        Raises:
            CodecError: the arrays are not float32, of different sizes, or out is missing.
        """
        return self._start(values, out, name, blocking=False)

    @collective("comm")
    def _start(self, values: Any, out: Any, name: str, blocking: bool) -> _Sum:
        """See `start`; a blocking sum may be complete at the end. Collective over comm."""
        out = values if out is None else out
        _check_arrays(values, out)
        buffers = self._buffers.setdefault(name, _Buffers())
        residual = self._residual_of(buffers, name, int(out.size)) if self._feedback else None
        source, target = _flat(values), _flat(out)
        if target is None or (values is not None and source is None):
            host = buffers.host = _host(buffers.host, int(out.size))
            if values is not None:
                _download(values, host)
            source, target = None if values is None else host, host
        codec = self._choice.next(4 * target.size) if self._choice else self._codec
        later = (target, out) if target is buffers.host else None
        return self._begin(source, target, codec, residual, later, blocking)

    def _begin(
        self,
        source: NDArray[np.float32] | None,
        target: NDArray[np.float32],
        codec: str,
        residual: NDArray[np.float32] | None,
        later: tuple[NDArray[np.float32], Any] | None,
        blocking: bool,
    ) -> _Sum:
        if codec != PLAIN:
            number = self._engine.start(source, target, codec, residual, self._scale)
            return _Sum(self._engine.native, number, later, codec, 4 * target.size)
        if source is None:
            target.fill(0)
        elif source is not target:
            target[:] = source
        if residual is not None:  # what a codec lost before goes along
            owed = residual[self._engine.owned(residual.size)]
            mine = target[self._engine.owned(residual.size)]
            mine += owed
            owed.fill(0)
        return _Sum(_Plain(self._engine.comm, target, self._scale, blocking), 0, later, codec, 4 * target.size)

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

        Collective over comm. It does not depend on the number of ranks that `load_feedback_state` is called with.
        """
        from lepton_mpi.comm.reduction import sum_in_rank_order

        kept = {name: b.residual for name, b in sorted(self._buffers.items()) if b.residual is not None}
        return {name: sum_in_rank_order(self._engine.comm, residual).copy() for name, residual in kept.items()}

    @collective("comm")
    def load_feedback_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take over what `feedback_state` returned, here or in a job of another number of ranks.

        Collective over comm.
        """
        first_node = self._engine.node_index == 0
        for name, owed in state.items():
            residual = np.zeros(owed.size, np.float32)
            if first_node:
                mine = self._engine.owned(owed.size)
                residual[mine] = owed.reshape(-1)[mine]
            self._buffers.setdefault(name, _Buffers()).residual = residual

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
        self._engine.free()


@final
class _Plain:
    """A sum by MPI itself, behind the interface of the engine; by MPI_Allreduce, often the faster one, where it may block."""

    def __init__(self, comm: MPI.Intracomm, target: NDArray[np.float32], scale: float, blocking: bool) -> None:
        from lepton_mpi.runtime.mpi import MPI

        parts = [target[at : at + _LONGEST_PLAIN] for at in range(0, target.size, _LONGEST_PLAIN)]
        self._requests: list[MPI.Request] = []
        for part in parts:
            if blocking:
                comm.Allreduce(MPI.IN_PLACE, part, MPI.SUM)
            else:
                self._requests.append(comm.Iallreduce(MPI.IN_PLACE, part, MPI.SUM))
        self._target, self._scale = target, scale

    def progress(self) -> None:
        self._requests = [request for request in self._requests if not request.Test()]

    def finish(self, number: int) -> None:
        for request in self._requests:
            request.Wait()
        self._requests.clear()
        if self._scale != 1.0:
            self._target *= np.float32(self._scale)
            self._scale = 1.0

    def done(self, number: int) -> bool:
        return not self._requests


@final
class _Sum:
    """A sum that the engine works on; `later` holds where it must be copied to in the end."""

    def __init__(
        self, engine: Any, number: int, later: tuple[NDArray[np.float32], Any] | None, way: str = "", nbytes: int = 0
    ) -> None:
        self._engine, self._number, self._later = engine, number, later
        self.way, self.nbytes = way, nbytes

    def finish(self) -> None:
        self._engine.finish(self._number)
        if self._later is not None:
            host, out = self._later
            self._later = None
            _upload(host, out)

    def done(self) -> bool:
        self._engine.progress()
        return bool(self._engine.done(self._number))


def _check_arrays(values: Any, out: Any) -> None:
    if out is None:
        raise CodecError("a rank without values of its own must give out, the array that receives the sum")
    for what, array in (("values", values), ("out", out)):
        if array is not None and array.dtype != np.float32:
            raise CodecError(f"{what}: expected a float32 array, received {array.dtype}; convert it")
    if values is not None and values.size != out.size:
        raise CodecError(f"expected out of {values.size} values, as many as are summed, received {out.size}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise CodecError("out: expected a writeable array, received a read-only one")


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def _flat(array: Any) -> NDArray[np.float32] | None:
    """Return a flat view, or None where the engine cannot work on the memory itself."""
    if not _is_host(array) or not (array.flags.c_contiguous and array.flags.aligned):
        return None
    return cast(NDArray[np.float32], array.reshape(-1))


def _host(host: NDArray[np.float32] | None, size: int) -> NDArray[np.float32]:
    return host if host is not None and host.size == size else np.empty(size, np.float32)


def _download(values: Any, host: NDArray[np.float32]) -> None:
    """Copy an array of any layout and device to flat host memory."""
    if _is_host(values):
        host.reshape(values.shape)[...] = values
    else:
        values.ravel().get(out=host)  # waits for the current stream


def _upload(host: NDArray[np.float32], out: Any) -> None:
    if _is_host(out):
        out[...] = host.reshape(out.shape)
    else:
        out[...] = _on_device(host, out).reshape(out.shape)


def _on_device(host: NDArray[np.float32], like: Any) -> Any:
    device = type(like)(host.shape, np.float32)
    device.set(host)
    return device
