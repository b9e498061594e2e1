"""Run a command on all ranks: start MPI, end it in order, and turn errors into one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.allocator import keep_freed_memory
from lepton_mpi.runtime.failure import FailureReport, end_with_error
from lepton_mpi.runtime.mpi import MPI, launched_rank, start_mpi

# What a command does on every rank: gets a duplicate of the world of its own and the report, returns the exit code.
Command = Callable[[MPI.Intracomm, FailureReport], int]


def run_command(command: Command, several_threads: bool | None = None) -> int:
    """Run a command on this rank and return its exit code. Collective over the world.

    Args:
        command: called with all ranks and a report of failures.
        several_threads: see `start_mpi`.

    Returns:
        The command's own code; 2 for mistakes of the user, 1 for failures of the run, if all
        ranks failed alike. If only some did, the job is aborted with that code.
    """
    try:
        world = start_mpi(several_threads)
    except LeptonError as error:
        if launched_rank() == 0:
            sys.stderr.write(f"lepton_mpi: {error}\n")
        return error.exit_code
    keep_freed_memory()
    comm = world.Dup()
    report = FailureReport(comm.Get_rank(), comm.Get_size())
    try:
        code = command(world.Dup(), report)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is wrong with the run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        code = end_with_error(comm, error, report)
    MPI.Finalize()
    return code
