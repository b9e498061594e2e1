"""Fail on all ranks alike when one of them has an error."""

from __future__ import annotations

from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.mpi import MPI


@collective("comm")
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


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that survives pickling and keeps its meaning."""
    if error is None or isinstance(error, LeptonError):
        return error
    return LeptonError(f"{type(error).__name__}: {error}")
