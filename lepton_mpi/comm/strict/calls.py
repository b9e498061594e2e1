"""Communicators that check every collective before they call it; see `comm.strict`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from lepton_mpi.comm.collective_mark import unchecked_collective
from lepton_mpi.comm.strict.record import Record
from lepton_mpi.comm.strict.watch import Axis, Watch
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.strict_mode import STRICT, configured_limit_s

_Comm = TypeVar("_Comm", bound=MPI.Intracomm)

# The collectives of a communicator with the names of their arguments. Those of arrays exist with an I before them too.
_OF_OBJECTS: Final = {
    "barrier": (),
    "bcast": ("obj", "root"),
    "gather": ("sendobj", "root"),
    "scatter": ("sendobj", "root"),
    "allgather": ("sendobj",),
    "alltoall": ("sendobj",),
    "reduce": ("sendobj", "op", "root"),
    "allreduce": ("sendobj", "op"),
    "scan": ("sendobj", "op"),
    "exscan": ("sendobj", "op"),
}
_OF_ARRAYS: Final = {
    "Barrier": (),
    "Bcast": ("buf", "root"),
    "Gather": ("sendbuf", "recvbuf", "root"),
    "Gatherv": ("sendbuf", "recvbuf", "root"),
    "Scatter": ("sendbuf", "recvbuf", "root"),
    "Scatterv": ("sendbuf", "recvbuf", "root"),
    "Allgather": ("sendbuf", "recvbuf"),
    "Allgatherv": ("sendbuf", "recvbuf"),
    "Alltoall": ("sendbuf", "recvbuf"),
    "Alltoallv": ("sendbuf", "recvbuf"),
    "Reduce": ("sendbuf", "recvbuf", "op", "root"),
    "Allreduce": ("sendbuf", "recvbuf", "op"),
    "Reduce_scatter": ("sendbuf", "recvbuf", "recvcounts", "op"),
    "Reduce_scatter_block": ("sendbuf", "recvbuf", "op"),
    "Scan": ("sendbuf", "recvbuf", "op"),
    "Exscan": ("sendbuf", "recvbuf", "op"),
}
# What makes or ends a communicator.
_OF_COMMUNICATORS: Final = ("Dup", "Split", "Split_type", "Create_cart", "Sub")
# Where ranks may give different numbers of values, and only their type must agree; Allgatherv tells the sum.
_UNEVEN: Final = ("Gatherv", "Scatterv", "Alltoallv", "Reduce_scatter")
# Whose receive buffers, not what they send, are alike on all ranks.
_ALIKE_RECEIVED: Final = ("Scatter", "Scatterv", "Allgatherv")
_OPERATIONS: Final = ("SUM", "MAX", "MIN", "PROD", "LAND", "LOR", "LXOR", "BAND", "BOR", "BXOR", "MAXLOC", "MINLOC")


class _Checked:
    """The methods of a communicator that involve other ranks, each checked or noted first.

    Attributes:
        strict_axis: how strict mode sees the communicator; None for those that it does not watch.
    """

    strict_axis: Axis | None = None

    @unchecked_collective("the communicator")
    def adopt(self, comm: Any, name: str) -> Any:
        """Return a communicator made of this one as one that is checked. Collective over the communicator."""
        if comm == MPI.COMM_NULL or self.strict_axis is None:
            return comm
        return _watch(comm, self.strict_axis.watch, name)

    def Set_name(self, name: str) -> None:
        """Name the communicator, and its axis in messages. Local."""
        MPI.Comm.Set_name(cast(MPI.Comm, self), name)
        if self.strict_axis is not None:
            self.strict_axis.name = name

    @unchecked_collective("the communicator")
    def Free(self) -> None:
        """Free it and its side channel. Collective over the communicator."""
        if self.strict_axis is not None:
            self.strict_axis.check(self.strict_axis.record("Free"))
            self.strict_axis.free()
        MPI.Comm.Free(cast(MPI.Comm, self))

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> MPI.Request:
        """Start to send, and note it. Local."""
        request = MPI.Comm.Isend(cast(MPI.Comm, self), buf, dest, tag)
        return self._limit(request, "send", "to", buf, dest, tag)

    def Irecv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG) -> MPI.Request:
        """Start to receive, and note it. Local."""
        request = MPI.Comm.Irecv(cast(MPI.Comm, self), buf, source, tag)
        return self._limit(request, "receive", "from", buf, source, tag)

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send; not for longer than the limit. Local."""
        _finish(self.Isend(buf, dest, tag))

    def Recv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG, status: MPI.Status | None = None) -> None:
        """Receive; not for longer than the limit. Local."""
        _finish(self.Irecv(buf, source, tag), status)

    def _limit(self, request: MPI.Request, verb: str, preposition: str, buf: Any, peer: int, tag: int) -> MPI.Request:
        """Return a request that notes what it waits for and gives up after the limit."""
        axis = self.strict_axis
        if axis is None or peer == MPI.PROC_NULL:
            return request
        rank = axis.world_ranks[peer] if peer >= 0 else peer
        whom = f"rank {rank}" if peer >= 0 else "any rank"
        record = axis.record(f"{verb} {preposition} {whom}, tag {tag}", *_describe(buf))
        axis.watch.note(record, waiting=False, is_message=True)
        return _LimitedRequest(request, axis.watch, record, rank)


class StrictComm(_Checked, MPI.Intracomm):
    """A communicator that checks its collectives."""


class StrictCartcomm(_Checked, MPI.Cartcomm):
    """A communicator with coordinates that checks its collectives."""


class _LimitedRequest(MPI.Request):
    """A request of a message that names the other rank's state if it does not come."""

    def __new__(cls, request: MPI.Request, watch: Watch, record: Record, peer: int) -> _LimitedRequest:
        self = super().__new__(cls, request)
        self._whole = request  # keeps the buffer
        self._watch, self._record, self._peer = watch, record, peer
        self._start = None
        return self

    _whole: MPI.Request
    _watch: Watch
    _record: Record
    _peer: int
    _start: float | None

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Return whether the message is through.

        Raises:
            RankMismatchError: not within the limit since the first look.
        """
        self._watch.require_whole()
        done = super().Test(status)
        if done:
            if self._start is not None:
                self._watch.note(self._record, waiting=False, is_message=True)
            return True
        now_s = time.monotonic()
        if self._start is None:
            self._start = now_s
            self._watch.note(self._record, waiting=True, is_message=True)
        self._watch.exchange_words()
        if now_s - self._start > self._watch.limit_s:
            where = "" if self._peer < 0 else f": {self._watch.describe(self._peer)}"
            raise self._watch.fail(f"rank {self._watch.rank} waited {now_s - self._start:.0f} s to {self._record}{where}")
        return False


def _finish(request: MPI.Request, status: MPI.Status | None = None) -> None:
    """Wait for a request of a blocking call."""
    while not request.Test(status):
        time.sleep(50e-6)


@unchecked_collective("comm")
def watched(comm: MPI.Intracomm, name: str) -> MPI.Intracomm:
    """Return a communicator whose collectives are checked, if strict mode is on; else the same.

    Collective over comm. What is made of it is checked too.

    Args:
        comm: all ranks of a job.
        name: what it is called in messages.

    Raises:
        ConfigError: the limit in the environment is no number.
    """
    return strict(comm, name, configured_limit_s()) if STRICT else comm


@unchecked_collective("comm")
def strict(comm: MPI.Intracomm, name: str, limit_s: float, ranks_per_node: int = 0) -> MPI.Intracomm:
    """Return a communicator whose collectives are checked.

    Collective over comm. It has the handle of `comm`; freeing either frees both.

    Args:
        comm: all ranks of a job.
        name: what it is called in messages.
        limit_s: how long a rank may stay away.
        ranks_per_node: see `Watch`.
    """
    return _watch(comm, Watch(comm, limit_s, ranks_per_node), name)


def _watch(comm: _Comm, watch: Watch, name: str) -> _Comm:
    made = StrictCartcomm(comm) if isinstance(comm, MPI.Cartcomm) else StrictComm(cast(MPI.Intracomm, comm))
    plain = MPI.Intracomm(comm)  # its duplicate is not checked itself
    made.strict_axis = Axis(watch, plain, name)
    return cast(_Comm, made)


def _describe(buf: Any) -> tuple[object, object]:
    """Return number and type of the values of a buffer as MPI takes it."""
    values = buf[0] if isinstance(buf, list | tuple) else buf
    if values is None or values is MPI.IN_PLACE:
        return "", ""
    return getattr(values, "size", ""), getattr(values, "dtype", type(values).__name__)


def _describe_call(name: str, arguments: Mapping[str, Any]) -> tuple[str, object, object]:
    """Return what must agree in a call: its name with operation and root, number and type of values."""
    kind = name.removeprefix("I").capitalize() if name.startswith("I") else name
    details = []
    if "op" in arguments:
        own = [known for known in _OPERATIONS if getattr(MPI, known) == arguments["op"]]
        details.append(f"op {own[0] if own else 'of its own'}")
    if "root" in arguments:
        details.append(f"root {arguments['root']}")
    shown = f"{name} ({', '.join(details)})" if details else name
    if name in _OF_OBJECTS or kind == "Barrier":
        return shown, "", ""
    sent = arguments.get("buf", arguments.get("sendbuf"))
    in_place = "op" in arguments and sent is MPI.IN_PLACE
    count, dtype = _describe(arguments["recvbuf"] if in_place or kind in _ALIKE_RECEIVED else sent)
    return shown, "" if kind in _UNEVEN else count, dtype


def _checked_method(name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """Return a method that checks a call and makes it."""
    method = getattr(MPI.Intracomm, name)
    defaults = {key: value for key, value in (("op", MPI.SUM), ("root", 0)) if key in parameters}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.strict_axis is not None:
            given = defaults | dict(zip(parameters, args, strict=False)) | kwargs
            self.strict_axis.check(self.strict_axis.record(*_describe_call(name, given)))
        return method(self, *args, **kwargs)

    call.__doc__ = f"Check and call `{name}`."
    return call


def _adopting_method(name: str) -> Callable[..., Any]:
    """Return a method that checks a call that makes a communicator, makes it, and has the result checked too."""
    method = getattr(MPI.Cartcomm if name == "Sub" else MPI.Intracomm, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        axis = self.strict_axis
        if axis is None:
            return method(self, *args, **kwargs)
        record = axis.record(name)
        axis.check(record)
        return self.adopt(method(self, *args, **kwargs), f"{axis.name}.{name}")

    call.__doc__ = f"Check and call `{name}`."
    return call


for _name, _parameters in (_OF_OBJECTS | _OF_ARRAYS).items():
    setattr(_Checked, _name, _checked_method(_name, _parameters))
    if _name in _OF_ARRAYS:
        setattr(_Checked, "I" + _name.lower(), _checked_method("I" + _name.lower(), _parameters))
for _name in _OF_COMMUNICATORS:
    setattr(_Checked, _name, _adopting_method(_name))
