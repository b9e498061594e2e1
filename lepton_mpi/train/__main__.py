"""`python -m lepton_mpi.train`: train a model on all ranks of the job.

NumPy and everything on it is imported only after the number of threads is known, since the
libraries below it read that once, when they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.strict.calls import watched
from lepton_mpi.config.command_line import Arguments, parse_arguments
from lepton_mpi.config.help_text import format_help
from lepton_mpi.config.toml_file import format_toml
from lepton_mpi.runtime.failure import FailureReport
from lepton_mpi.runtime.launch import run_command
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import limit_threads


def main(argv: Sequence[str], program: str = "python -m lepton_mpi.train") -> int:
    """Train as a command line says and return the exit code.

    Collective over the world.

    Args:
        argv: arguments without the program's name; rank 0's count.
        program: the command as the user types it, for the help text.
    """
    return run_command(partial(_main, argv, program), _wants_several_threads(argv))


def _wants_several_threads(argv: Sequence[str]) -> bool | None:
    """Return what the command line says of reduce.progress_thread; MPI must know before rank 0 can read a file. Local."""
    for argument, following in reversed(list(zip(argv, [*argv[1:], ""], strict=True))):
        name, given, value = argument.partition("=")
        if name == "--reduce.progress_thread":
            return {"on": True, "off": False}.get(value if given else following)
    return None


def _main(argv: Sequence[str], program: str, world: MPI.Intracomm, report: FailureReport) -> int:
    world = watched(world, "the world")
    arguments = _read_arguments(argv, world)
    if arguments.help or arguments.print_config:
        if world.Get_rank() == 0:
            sys.stdout.write(format_help(program) if arguments.help else format_toml(arguments.config))
        return 0
    # The number of threads may change how a product is divided, and so its bits.
    num_threads = limit_threads(1 if arguments.config.train.reproducible else arguments.config.run.threads)
    from lepton_mpi.train.command import run_training

    return run_training(world, arguments.config, num_threads, report)


def _read_arguments(argv: Sequence[str], world: MPI.Intracomm) -> Arguments:
    """Read the command line and the file it names on rank 0, for all. Collective over world."""
    return do_on_root(world, lambda: parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
