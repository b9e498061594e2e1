"""`python -m lepton_mpi COMMAND`: what the commands share.

NumPy and everything on it is imported only after the number of threads is known, since the
libraries below it read that once, when they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from lepton_mpi.cli.arguments import (
    Arguments,
    ConvertArguments,
    EvaluateArguments,
    ExportArguments,
    PredictArguments,
    read_arguments,
)
from lepton_mpi.cli.bench_arguments import BenchArguments
from lepton_mpi.cli.checkpoint_arguments import CheckpointArguments
from lepton_mpi.cli.parser import PROGRAM
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.strict.calls import watched
from lepton_mpi.runtime.failure import FailureReport
from lepton_mpi.runtime.launch import run_command
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import limit_threads
from lepton_mpi.train.__main__ import main as train_main


@collective("the world")
def main(argv: Sequence[str]) -> int:
    """Run a command line and return the exit code.

    Collective over the world.

    Args:
        argv: arguments without the program's name; rank 0's count, but for the command itself.
    """
    if argv[:1] == ["train"]:
        return train_main(argv[1:], f"{PROGRAM} train")
    return run_command(partial(_main, argv))


def _main(argv: Sequence[str], comm: MPI.Intracomm, report: FailureReport) -> int:
    comm = watched(comm, "the world")
    arguments = _read_arguments(argv, comm)
    if isinstance(arguments, str):
        if comm.Get_rank() == 0:
            sys.stdout.write(arguments)
        return 0
    limit_threads(arguments.config.run.threads)
    if isinstance(arguments, CheckpointArguments):
        from lepton_mpi.cli.checkpoint_tools import run_checkpoint_tool

        return run_checkpoint_tool(comm, arguments)
    if isinstance(arguments, BenchArguments):
        from lepton_mpi.cli.bench import run_bench

        run_bench(comm, arguments)
    elif isinstance(arguments, EvaluateArguments):
        from lepton_mpi.cli.evaluate import run_evaluate

        run_evaluate(comm, arguments)
    elif isinstance(arguments, PredictArguments):
        from lepton_mpi.cli.predict import run_predict

        run_predict(comm, arguments)
    elif isinstance(arguments, ExportArguments):
        from lepton_mpi.cli.export import run_export

        run_export(comm, arguments)
    elif isinstance(arguments, ConvertArguments):
        from lepton_mpi.cli.convert import run_convert

        run_convert(comm, arguments)
    else:
        from lepton_mpi.cli.fuse import run_fuse

        run_fuse(comm, arguments)
    return 0


@collective("comm")
def _read_arguments(argv: Sequence[str], comm: MPI.Intracomm) -> Arguments | str:
    """Read the command line, and the configuration of the run it names, on rank 0 for all. Collective over comm."""
    return do_on_root(comm, lambda: read_arguments(argv))
