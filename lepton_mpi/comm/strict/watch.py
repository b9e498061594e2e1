"""Strict mode: ranks compare what they are about to call before every collective, and name who differs instead of hanging.

With `LEPTON_STRICT=1` every command gives its ranks a `StrictComm` (`watched`). Before a collective, each rank sends a record
of the call (name, axis, count, type, call site) to the others of the communicator, over a duplicate that nothing else uses,
and none goes on before all have come. Who stays away longer than the limit is looked up on a board in shared memory; ranks of
other nodes tell what they are doing as soon as they have waited for half of the limit themselves. Messages between two ranks
are not compared, but noted on the board and limited too.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar, cast

from lepton_mpi.comm.collective_mark import unchecked_collective
from lepton_mpi.comm.strict.board import STATE_NBYTES, Board, State
from lepton_mpi.comm.strict.record import RECORD_NBYTES, Record, call_site, describe_difference, name_ranks
from lepton_mpi.errors import RankMismatchError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.strict_mode import LIMIT_VARIABLE
from lepton_mpi.runtime.threads import is_oversubscribed

_Function = TypeVar("_Function", bound=Callable[..., object])

# Pauses between looks, growing, as in `comm.waiting`.
_FIRST_PAUSE_S = 20e-6
_LAST_PAUSE_S = 500e-6
# Where every rank has a core: how long to look without a pause.
_BUSY_S = 1e-3
# How long a rank may work on its own between two halves of a collective that is made for that, such as `do_on_all`.
_PATIENCE_S = 600.0


class Watch:
    """What the ranks of a job know of each other's calls.

    Attributes:
        comm: all ranks, a communicator of its own.
        limit_s: how long a rank may stay away.
    """

    @unchecked_collective("comm")
    def __init__(self, comm: MPI.Intracomm, limit_s: float, ranks_per_node: int = 0) -> None:
        """Set the watch up.

        Collective over comm, which must not be watched.

        Args:
            comm: all ranks; duplicated.
            limit_s: how long a rank may stay away.
            ranks_per_node: treat this many consecutive ranks as one node, for tests; 0 asks MPI.
        """
        self.comm, self.limit_s = comm.Dup(), limit_s
        rank = self.comm.Get_rank()
        split_type = partial(self.comm.Split_type, MPI.COMM_TYPE_SHARED)
        node = self.comm.Split(rank // ranks_per_node, rank) if ranks_per_node else split_type(rank)
        neighbours: list[int] = node.allgather(rank)
        self._board = Board(cast(MPI.Intracomm, node))
        node.Free()
        self._node_rank = {neighbour: index for index, neighbour in enumerate(neighbours)}
        self._far = [other for other in range(self.comm.Get_size()) if other not in self._node_rank]
        self._state = State()
        self._heard: dict[int, State] = {}
        self._told: list[tuple[MPI.Request, bytes]] = []
        self._next_word_s = 0.0
        self._error: RankMismatchError | None = None

    @property
    def rank(self) -> int:
        """This rank, as messages name it."""
        return int(self.comm.Get_rank())

    def require_whole(self) -> None:
        """Raise the error of this watch again, if it found one: what follows would only wait for ranks that never come. Local."""
        if self._error is not None:
            raise self._error

    def fail(self, message: str) -> RankMismatchError:
        """Return the error that ends the run. Local."""
        self._error = RankMismatchError(message)
        return self._error

    def note(self, record: Record, waiting: bool, is_message: bool = False) -> None:
        """Write on the board what this rank begins or has ended. Local."""
        collective, message = (self._state.collective, record) if is_message else (record, None)
        self._state = State(collective, message, waiting, time.monotonic())
        self._board.write(self._state)
        self._heard.clear()
        self._next_word_s = self._state.since_s + self.limit_s / 2

    def exchange_words(self) -> None:
        """Tell ranks of other nodes what this rank waits in, and hear theirs. Local; call it again and again while waiting."""
        now_s = time.monotonic()
        if not self._far or now_s < self._next_word_s:
            return
        status = MPI.Status()
        fresh = self._next_word_s > self._state.since_s + self.limit_s / 2  # what came before is of unknown age
        while self.comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            packed = bytearray(STATE_NBYTES)
            self.comm.Recv(packed, status.Get_source(), status.Get_tag())
            if fresh:
                told = State.unpack(bytes(packed))  # its time is how long ago it began, since clocks differ
                since_s = now_s - told.since_s
                self._heard[status.Get_source()] = State(told.collective, told.message, told.waiting, since_s)
        own = State(self._state.collective, self._state.message, True, now_s - self._state.since_s).pack()
        self._told = [(request, buffer) for request, buffer in self._told if not request.Test()]
        self._told += [(self.comm.Isend(own, rank), own) for rank in self._far]
        # Less often in the end: ranks that work for long do not take these messages.
        self._next_word_s = now_s + max(self.limit_s / 16, (now_s - self._state.since_s) / 8)

    def state_of(self, rank: int) -> State | None:
        """Return what a rank did last, or None if nothing is known. Local."""
        if rank in self._node_rank:
            return self._board.read(self._node_rank[rank])
        return self._heard.get(rank)

    def waits_elsewhere(self, rank: int) -> bool:
        """Return whether a rank is known to have waited for half of the limit. Local."""
        state = self.state_of(rank)
        return state is not None and state.waiting and time.monotonic() - state.since_s > self.limit_s / 2

    def describe(self, rank: int) -> str:
        """Return in words where a rank is. Local."""
        state = self.state_of(rank)
        if state is None:
            return f"rank {rank} is on another node and has told of no wait of its own"
        return state.describe(rank, time.monotonic())


class Axis:
    """A communicator as strict mode sees it.

    Attributes:
        watch: what the ranks know of each other.
        name: what the axis is called in messages.
    """

    @unchecked_collective("comm")
    def __init__(self, watch: Watch, comm: MPI.Intracomm, name: str) -> None:
        """Make the side channel.

        Collective over comm.

        Args:
            watch: what the ranks know of each other.
            comm: the communicator, not watched.
            name: what it is called in messages.
        """
        self.watch, self.name = watch, name
        self._side = comm.Dup()
        self._rank, self._size = self._side.Get_rank(), self._side.Get_size()
        group, everyone = self._side.Get_group(), watch.comm.Get_group()
        self.world_ranks: list[int] = list(MPI.Group.Translate_ranks(group, range(self._size), everyone))

    @unchecked_collective("the axis")
    def free(self) -> None:
        """Give the side channel back. Collective over the axis."""
        self._side.Free()

    @property
    def is_open(self) -> bool:
        """Whether it was not freed."""
        return bool(self._side != MPI.COMM_NULL)

    def record(self, name: str, count: object = "", dtype: object = "") -> Record:
        """Return the record of a call from this line. Local."""
        return Record(name, self.name, str(count), str(dtype), call_site())

    @unchecked_collective("the axis")
    def check(self, record: Record, patient: bool = False) -> None:
        """Return when all ranks of the axis are about to do the same.

        Collective over the axis.

        Args:
            record: what this rank is about to do.
            patient: ranks may come late, since they work on their own before; not if they wait for others elsewhere.

        Raises:
            RankMismatchError: some are about to do something else, or do not come.
        """
        watch = self.watch
        watch.require_whole()
        if self._size == 1:
            return
        watch.note(record, waiting=True)
        mine = record.pack()
        arrived = bytearray(mine * self._size)
        rows = memoryview(arrived)
        others = [rank for rank in range(self._size) if rank != self._rank]
        receives = [self._side.Irecv(rows[r * RECORD_NBYTES : (r + 1) * RECORD_NBYTES], r) for r in others]
        sends = [self._side.Isend(mine, rank) for rank in others]
        start, pause_s, busy_s = time.monotonic(), _FIRST_PAUSE_S, 0.0 if is_oversubscribed() else _BUSY_S
        while not MPI.Request.Testall(receives):
            waited_s = time.monotonic() - start
            watch.exchange_words()
            if waited_s > watch.limit_s:
                self._judge(record, dict(zip(others, receives, strict=True)), rows, waited_s, patient)
            if waited_s > busy_s:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        if arrived != mine * self._size:
            raise watch.fail(self._difference(range(self._size), rows))
        MPI.Request.Waitall(sends)  # they have arrived as soon as the others take part, as all do now
        watch.note(record, waiting=False)

    def _judge(self, record: Record, receives: Mapping[int, MPI.Request], rows: memoryview, waited_s: float, patient: bool) -> None:
        """Raise if ranks that have not come in time will not come."""
        absent = [rank for rank, request in receives.items() if not request.Test()]
        came = [rank for rank in range(self._size) if rank not in absent]
        difference = self._difference(came, rows)
        elsewhere = any(self.watch.waits_elsewhere(self.world_ranks[rank]) for rank in absent)
        if not absent or (patient and not elsewhere and not difference and waited_s < _PATIENCE_S):
            return
        for rank in absent:
            receives[rank].Cancel()
        names = [self.world_ranks[rank] for rank in absent]
        where = "; ".join(self.watch.describe(rank) for rank in names[:8])
        advice = "" if difference or elsewhere else f". If it only works for so long, set {LIMIT_VARIABLE}"
        raise self.watch.fail(
            difference
            or f"{name_ranks([self.world_ranks[rank] for rank in came])} waited {waited_s:.0f} s in {record}, where "
            f"{name_ranks(names)} did not come: {where}{advice}"
        )

    def _difference(self, ranks: Any, rows: memoryview) -> str:
        packed = {rank: rows[rank * RECORD_NBYTES : (rank + 1) * RECORD_NBYTES] for rank in ranks}
        return describe_difference(dict(sorted((self.world_ranks[rank], Record.unpack(row)) for rank, row in packed.items())))


def axis_of(comm: object) -> Axis | None:
    """Return how strict mode sees a communicator; None where it does not watch it, or it is freed. Local."""
    axis: Axis | None = getattr(comm, "strict_axis", None)
    return axis if axis is not None and axis.is_open else None


def checked(function: _Function, over: str, equal: str, patient: bool) -> _Function:
    """Return a collective function that compares its callers first. Local; see `comm.contract.collective`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # says itself what is wrong with its arguments
        axis = find_axis(over, arguments)
        if axis is not None:
            values = arguments.get(equal)
            record = axis.record(function.__qualname__, getattr(values, "size", ""), getattr(values, "dtype", ""))
            axis.check(record, patient)
        return function(*args, **kwargs)

    return cast(_Function, call)


# Where functions have the grid, or what has it.
_HOLDERS: Final = ("grid", "_grid", "network", "training", "run", "_engine", "engine")


def find_axis(over: str, arguments: Mapping[str, Any]) -> Axis | None:
    """Return the axis that a collective function is called over, or None if its arguments do not tell. Local.

    Args:
        over: the ranks in words, as the mark of the function says.
        arguments: of the call, by name.
    """
    name = over.removeprefix("the ").rpartition(".")[2]
    names = [name, "_" + name, *(("comm", "_comm", "world") if name in ("comm", "world") else ())]
    own = arguments.get("self")
    for candidate in (*(arguments.get(n) for n in names), *(getattr(own, n, None) for n in names)):
        found = axis_of(candidate)
        if found is not None:
            return found
    level = list(arguments.values())
    for _ in range(3):
        level = [holder for x in level for n in _HOLDERS if (holder := getattr(x, n, None)) is not None] + [
            x for x in level if hasattr(x, "data_across")
        ]
        for holder in level:
            found = axis_of(getattr(holder, name, None))
            if found is not None:
                return found
    return None
