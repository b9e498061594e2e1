"""Measure what the cost model of the all-reduce needs, in well under a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.allreduce_engine import AllReduceEngine
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.cost_model import CodecRates, Machine
from lepton_mpi.comm.waiting import wait
from lepton_mpi.compress.passes import codec_passes
from lepton_mpi.runtime.mpi import MPI

_PLAIN_NBYTES = (1024, 16 * 1024, 256 * 1024, 4 * 2**20)
_NODE_VALUES, _CODEC_VALUES = 128 * 1024, 32 * 1024
_MESSAGE_NBYTES = 60_000
# When the parts of a probe end, seconds after its beginning. What is not measured as often as _REPEATS by then has to do.
_PLAIN_ENDS_S, _NODE_ENDS_S, _LINKS_END_S, _CODECS_END_S = 0.2, 0.3, 0.45, 0.8
_REPEATS = 5

_log = logging.getLogger(__name__)


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
def probe_machine(spread: Spread, codecs: Sequence[str], share: float) -> Machine:
    """Measure plain MPI, the node, the links and the codecs, with all ranks at once.

    Collective over spread.comm.

    Args:
        spread: the ranks, in communicators that nothing else uses now.
        codecs: those whose rates are wanted, if there are several nodes.
        share: of the values that topk sends.

    Returns:
        What was measured, of all ranks the slowest; equal on all.
    """
    watch = Watch(spread.comm)
    plain = _plain_curve(watch)
    node_latency, node_s = _node_times(watch, spread)
    link_latency, link_s = _link_times(watch, spread)
    rates = _codec_rates(watch, codecs, share) if spread.num_nodes > 1 else {}  # on one node nothing is encoded
    level = logging.INFO if spread.comm.Get_rank() == 0 else logging.DEBUG
    _log.log(level, "measured MPI, nodes, links and codecs in %.2f s", watch.spent())
    return Machine(
        num_nodes=spread.num_nodes,
        num_owners=spread.num_owners,
        node_latency_s=node_latency,
        node_rate=4 * _NODE_VALUES / max(node_s - node_latency, 1e-9),
        link_latency_s=link_latency,
        link_rate=8 * _MESSAGE_NBYTES / max(link_s - link_latency, 1e-9),
        codecs=rates,
        plain=plain,
    )


@final
class Watch:
    """Takes times on all ranks, and stops in time on all alike."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Begin.

        Args:
            comm: the ranks that measure; nothing else uses it now.
        """
        self.comm = comm
        self._begin = time.perf_counter()

    @collective("comm")
    def spent(self) -> float:
        """Return the seconds since the beginning, on the rank that began first. Collective over comm."""
        return self._agree(0.0)[0]

    @collective("comm")
    def slowest(self, action: Callable[[], object], until_s: float) -> float:
        """Return the shortest time of some repeats, each of the slowest rank.

        Collective over comm.

        Args:
            action: what to time; all ranks begin it together.
            until_s: no more repeats than one after so many seconds since the beginning.
        """
        times: list[float] = []
        self._agree(0.0)
        while len(times) <= _REPEATS:
            start = time.perf_counter()
            action()
            spent_s, seconds = self._agree(time.perf_counter() - start)
            times.append(seconds)
            if spent_s > until_s:
                break
        return min(times[1:] or times)  # the first one warms up

    @collective("comm")
    def _agree(self, seconds: float) -> tuple[float, float]:
        """Return the largest of all ranks of the time since the beginning, and of a number. Collective over comm."""
        numbers = np.array([time.perf_counter() - self._begin, seconds])
        self.comm.Allreduce(MPI.IN_PLACE, numbers, MPI.MAX)
        return float(numbers[0]), float(numbers[1])


@collective("watch.comm")
def _plain_curve(watch: Watch) -> list[tuple[int, float]]:
    """Return what MPI_Allreduce takes, by size; the model continues the curve. Collective over watch.comm."""
    curve: list[tuple[int, float]] = []
    for i, nbytes in enumerate(_PLAIN_NBYTES):
        if curve and curve[-1][1] * nbytes / curve[-1][0] > _PLAIN_ENDS_S:
            break
        values = np.zeros(nbytes // 4, np.float32)
        until_s = _PLAIN_ENDS_S * (i + 1) / len(_PLAIN_NBYTES)
        curve.append((nbytes, watch.slowest(partial(watch.comm.Allreduce, MPI.IN_PLACE, values), until_s)))
    return curve


@collective("spread.comm")
def _node_times(watch: Watch, spread: Spread) -> tuple[float, float]:
    """Return the time of a short and a longer exact sum inside nodes, all nodes at once. Collective over spread.comm."""
    if spread.num_nodes == spread.comm.Get_size():
        return 0.0, 0.0
    inside = AllReduceEngine(spread.node, ranks_per_node=0, chunk_mib=0.5, depth=2, timeout_s=60.0, background=False)
    times = []
    for size in (256, _NODE_VALUES):
        values = np.zeros(size, np.float32)
        times.append(watch.slowest(partial(_sum_exactly, inside, values), _NODE_ENDS_S))
    inside.free()
    return times[0], times[1]


def _sum_exactly(inside: AllReduceEngine, values: NDArray[np.float32]) -> None:
    inside.native.finish(inside.start(values, values, "exact", None, 1.0))


@collective("spread.comm")
def _link_times(watch: Watch, spread: Spread) -> tuple[float, float]:
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

    short_s = watch.slowest(lambda: exchange(8, 1), _LINKS_END_S)
    return short_s, watch.slowest(lambda: exchange(_MESSAGE_NBYTES, 8), _LINKS_END_S)


@collective("watch.comm")
def _codec_rates(watch: Watch, codecs: Sequence[str], share: float) -> dict[str, CodecRates]:
    """Return how fast codecs work with all ranks at work. Collective over watch.comm."""
    values = np.sin(np.arange(_CODEC_VALUES) ** 2).astype(np.float32)
    begin_s, rates = watch.spent(), {}
    for i, codec in enumerate(codecs):
        until_s = begin_s + (_CODECS_END_S - begin_s) * (i + 1) / len(codecs)
        passes = codec_passes(codec, values, share)
        encode, decode_add, decode = (watch.slowest(p, until_s) for p in (passes.encode, passes.decode_add, passes.decode))
        rates[codec] = CodecRates(
            encode=values.nbytes / encode,
            decode_add=values.nbytes / decode_add,
            requantise=values.nbytes / (encode + decode),
            decode=values.nbytes / decode,
            ratio=passes.ratio,
        )
    return rates
