"""Start MPI once, on purpose, and end it cleanly.

mpi4py is told not to initialise MPI at import, so importing lepton_mpi stays free of side
effects; `start_mpi` does it. All other modules import `MPI` from here.
"""

from __future__ import annotations

import os

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = True

from mpi4py import MPI as MPI  # noqa: E402

from lepton_mpi.errors import GridError  # noqa: E402
from lepton_mpi.runtime.threads import ranks_on_node  # noqa: E402

# What a launcher tells a process about the size of its job; the first that is set counts.
_LAUNCHER_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
_LAUNCHER_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def launched_ranks() -> int:
    """Return how many ranks the launcher says it started (1 without a launcher).

    Local. Slurm's own count is used only below srun with a process manager, since a
    plain `python` inside an allocation is one process whatever SLURM_NTASKS says.
    """
    for name in _LAUNCHER_SIZE_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    if "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:
        value = os.environ["SLURM_STEP_NUM_TASKS"]
        return int(value) if value.isdigit() else 1
    return 1


def launched_rank() -> int:
    """Return which rank the launcher says this process is (0 without a launcher). Local; for messages before MPI starts."""
    for name in _LAUNCHER_RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0


def mpi_library() -> str:
    """Return the first line of the MPI library's own version text. Local."""
    return MPI.Get_library_version().splitlines()[0].strip().rstrip("\0").split(", package")[0]


def start_mpi(several_threads: bool | None = None) -> MPI.Intracomm:
    """Initialise MPI if nobody has, and return the world communicator.

    Collective over the world.

    Args:
        several_threads: whether to ask for MPI_THREAD_MULTIPLE, which makes calls inside a node slower (of 8 bytes, a sum by
            6% under Open MPI 5 and by 90% under MPICH 4); None: where the launcher says that there are several nodes, since
            then a thread may move messages while another computes.

    Returns:
        `MPI.COMM_WORLD`. Never communicate on it: duplicate it first.

    Raises:
        GridError: the launcher started several ranks but MPI sees one, which happens when
            `mpirun` belongs to another MPI than the one mpi4py loaded.
    """
    if not MPI.Is_initialized():
        wanted = launched_ranks() > ranks_on_node() if several_threads is None else several_threads
        MPI.Init_thread(MPI.THREAD_MULTIPLE if wanted else MPI.THREAD_SERIALIZED)
    expected, size = launched_ranks(), MPI.COMM_WORLD.Get_size()
    if expected > 1 and size == 1:
        raise GridError(
            f"the launcher started {expected} ranks, but MPI sees a world of 1: mpirun or srun belongs to "
            f"another MPI than the one Python uses ({mpi_library()}). Start with the mpirun of that MPI "
            "(in the project's environment: .venv/bin/mpirun), or rebuild mpi4py and lepton_mpi with yours"
        )
    return MPI.COMM_WORLD


def choose_progress_thread(how: str, several_nodes: bool) -> bool:
    """Return whether a thread of its own is to move messages between nodes. Local; equal on all ranks.

    Args:
        how: "on", "off", or "auto": where MPI admits it.
        several_nodes: whether there is anything to move.

    Raises:
        GridError: it must be, but MPI was started for one thread at a time.
    """
    if how == "off" or not several_nodes:
        return False
    if MPI.Query_thread() >= MPI.THREAD_MULTIPLE:
        return True
    if how == "on":
        raise GridError(
            "reduce.progress_thread: on needs MPI_THREAD_MULTIPLE, which MPI was not asked for or does not give "
            f"({mpi_library()}): on a single host say it on the command line rather than in a file, or set it to auto"
        )
    return False
