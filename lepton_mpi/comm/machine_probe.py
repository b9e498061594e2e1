"""Measure what the cost model of the all-reduce needs, in well under a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.allreduce_engine import CODEC_NUMBERS, AllReduceEngine
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.cost_model import CodecRates, Machine
from lepton_mpi.comm.waiting import wait
from lepton_mpi.runtime.mpi import MPI

_PLAIN_NBYTES = (1024, 16 * 1024, 256 * 1024, 4 * 2**20)
_CODEC_VALUES = 128 * 1024
_MESSAGE_NBYTES = 60_000
# The curve of plain MPI ends where all of it has taken this long; the model continues it.
_BUDGET_S = 0.2
_REPEATS = 5


class Spread(Protocol):
    """How ranks are spread over nodes.

    Attributes:
        comm: all ranks.
        node: those of this node.
        peers: those with the same place on other nodes, in node order; used by owners only.
        num_nodes: number of nodes.
        num_owners: ranks of every node that exchange with other nodes.
        owner: the place of this rank among them, or None.
    """

    @property
    def comm(self) -> MPI.Intracomm: ...
    @property
    def node(self) -> MPI.Intracomm: ...
    @property
    def peers(self) -> MPI.Comm: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_owners(self) -> int: ...
    @property
    def owner(self) -> int | None: ...


@collective("spread.comm")
def probe_machine(spread: Spread, codecs: Sequence[str]) -> Machine:
    """Measure plain MPI, the node, the links and the codecs, with all ranks at once.

    Collective over spread.comm.

    Args:
        spread: the ranks, in communicators that nothing else uses now.
        codecs: those whose rates are wanted.

    Returns:
        What was measured, of all ranks the slowest; equal on all.
    """
    comm = spread.comm
    plain = _plain_curve(comm)
    node_latency, node_s = _node_times(spread)
    link_latency, link_s = _link_times(spread)
    rates = {codec: _codec_seconds(comm, codec) for codec in codecs}
    nbytes = 4 * _CODEC_VALUES
    return Machine(
        num_nodes=spread.num_nodes,
        num_owners=spread.num_owners,
        node_latency_s=node_latency,
        node_rate=nbytes / max(node_s - node_latency, 1e-9),
        link_latency_s=link_latency,
        link_rate=8 * _MESSAGE_NBYTES / max(link_s - link_latency, 1e-9),
        codecs={
            codec: CodecRates(
                encode=nbytes / encode,
                decode_add=nbytes / decode_add,
                requantise=nbytes / (encode + decode),
                decode=nbytes / decode,
                ratio=nbytes / native.codec_encoded_nbytes(CODEC_NUMBERS[codec], _CODEC_VALUES),
            )
            for codec, (encode, decode_add, decode) in rates.items()
        },
        plain=plain,
    )


@collective("comm")
def _slowest(comm: MPI.Intracomm, action: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Return the shortest time of some repeats, each of the slowest rank. Collective over comm."""
    times = np.empty(repeats)
    for i in range(-1, repeats):
        comm.Barrier()
        start = time.perf_counter()
        action()
        if i >= 0:
            times[i] = time.perf_counter() - start
    comm.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
    return float(times.min())


@collective("comm")
def _plain_curve(comm: MPI.Intracomm) -> list[tuple[int, float]]:
    """Return what MPI_Allreduce takes, by size. Collective over comm."""
    curve: list[tuple[int, float]] = []
    start = time.perf_counter()
    for nbytes in _PLAIN_NBYTES:
        values = np.zeros(nbytes // 4, np.float32)
        curve.append((nbytes, _slowest(comm, partial(comm.Allreduce, MPI.IN_PLACE, values))))
        if comm.bcast(time.perf_counter() - start) > _BUDGET_S:
            break
    return curve


@collective("spread.comm")
def _node_times(spread: Spread) -> tuple[float, float]:
    """Return the time of a short and a longer exact sum inside nodes, all nodes at once. Collective over spread.comm."""
    if spread.num_nodes == spread.comm.Get_size():
        return 0.0, 0.0
    inside = AllReduceEngine(spread.node, ranks_per_node=0, chunk_mib=0.5, depth=2, timeout_s=60.0, background=False)
    times = []
    for size in (256, _CODEC_VALUES):
        values = np.zeros(size, np.float32)
        times.append(_slowest(spread.comm, partial(_sum_exactly, inside, values)))
    inside.free()
    return times[0], times[1]


def _sum_exactly(inside: AllReduceEngine, values: NDArray[np.float32]) -> None:
    inside.native.finish(inside.start(values, values, "exact", None, 1.0))


@collective("spread.comm")
def _link_times(spread: Spread) -> tuple[float, float]:
    """Return the time of a short message and of eight long ones between nodes. Collective over spread.comm."""
    if spread.num_nodes == 1:
        return 0.0, 0.0
    peers = spread.peers
    right, left = (peers.Get_rank() + 1) % peers.Get_size(), (peers.Get_rank() - 1) % peers.Get_size()

    def exchange(nbytes: int, count: int) -> None:
        if spread.owner is None:
            return
        sent: NDArray[np.uint8] = np.zeros(nbytes, np.uint8)
        received = [np.empty_like(sent) for _ in range(count)]
        requests = [peers.Irecv(buffer, left) for buffer in received] + [peers.Isend(sent, right) for _ in range(count)]
        for request in requests:
            wait(request, "a message of a probe")

    return _slowest(spread.comm, lambda: exchange(8, 1)), _slowest(spread.comm, lambda: exchange(_MESSAGE_NBYTES, 8))


@collective("comm")
def _codec_seconds(comm: MPI.Intracomm, codec: str) -> tuple[float, float, float]:
    """Return what encoding, decoding with addition, and decoding take. Collective over comm."""
    number = CODEC_NUMBERS[codec]
    values = np.linspace(-1, 1, _CODEC_VALUES, dtype=np.float32)
    payload = np.empty(native.codec_encoded_nbytes(number, values.size), np.uint8)
    encode = _slowest(comm, lambda: native.codec_encode(number, values, payload))
    decode_add = _slowest(comm, lambda: native.codec_decode(number, payload, values, True))
    decode = _slowest(comm, lambda: native.codec_decode(number, payload, values, False))
    return encode, decode_add, decode
