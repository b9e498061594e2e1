"""Fail on all ranks alike when one of them has an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.mpi import MPI

_Result = TypeVar("_Result")


@collective("comm", patient=True)
def raise_together(comm: MPI.Intracomm, error: Exception | None) -> None:
    """Raise on every rank the error of the lowest rank that has one.

    Collective over comm. Call it on all ranks after a step that may fail on one of them.

    Args:
        comm: communicator whose ranks did the step.
        error: this rank's error, or None.

    Raises:
        The error of the lowest failing rank, of the same type on all ranks, with the rank
        named where it is not rank 0's alone. Errors that are no LeptonError become one.
    """
    errors: list[Exception | None] = comm.allgather(_portable(error))
    failing = [rank for rank, found in enumerate(errors) if found is not None]
    if not failing:
        return
    first = errors[failing[0]]
    assert first is not None
    if len(failing) == len(errors) or failing[0] == 0:
        raise first
    raise type(first)(f"rank {failing[0]}: {first}")


@collective("comm")
def do_on_all(comm: MPI.Intracomm, work: Callable[[], _Result]) -> _Result:
    """Do local work on every rank and return each rank's own result, or raise on every rank.

    Collective over comm, after the work; the work itself must not communicate.

    Raises:
        What `raise_together` makes of the errors of the work.
    """
    results, error = [], None
    try:
        results.append(work())
    except Exception as found:
        error = found
    raise_together(comm, error)
    return results[0]


@collective("comm")
def do_on_root(comm: MPI.Intracomm, work: Callable[[], _Result]) -> _Result:
    """Do local work on rank 0 and return its result on every rank, or raise on every rank.

    Collective over comm, after the work; the work itself must not communicate.

    Raises:
        What `raise_together` makes of the error of the work.
    """
    is_root = comm.Get_rank() == 0
    done = do_on_all(comm, lambda: work() if is_root else None)
    result: _Result = comm.bcast(done, root=0)
    return result


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that survives pickling and keeps its meaning."""
    if error is None or isinstance(error, LeptonError):
        return error
    return LeptonError(f"{type(error).__name__}: {error}")
