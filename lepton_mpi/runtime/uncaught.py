"""Uncaught errors of a user's script under mpirun: one traceback, and no rank left waiting for another."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import final

from lepton_mpi.runtime.failure import FailureReport, end_with_error
from lepton_mpi.runtime.mpi import MPI


@final
class UncaughtErrorHook:
    """A `sys.excepthook` for all ranks: where all fail alike one of them speaks, else the failing one ends the job."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Keep `comm`, which nothing else may use, for as long as the process lives. Local."""
        self._comm = comm
        self._report = FailureReport(comm.Get_rank(), comm.Get_size(), traces=True)

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Report an error that nobody caught; Python exits with code 1 afterwards."""
        end_with_error(self._comm, error, self._report)
        MPI.Finalize()  # all ranks are here: what else they would do together at exit is off


def end_job_on_uncaught_errors(comm: MPI.Intracomm) -> None:
    """Set the hook on all ranks, unless there is only one or all have it already.

    Collective over comm.
    """
    have_it: list[bool] = comm.allgather(isinstance(sys.excepthook, UncaughtErrorHook))
    if len(have_it) > 1 and not all(have_it):
        sys.excepthook = UncaughtErrorHook(comm.Dup())
