"""Threads a rank for linear algebra.

The libraries below NumPy read these variables when they are loaded, so this module must run
before NumPy is imported, and must not import it.
"""

from __future__ import annotations

import os
import sys
from functools import cache

_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Ranks on this node, as launchers tell: Open MPI, MPICH's hydra, Intel MPI and MVAPICH, Slurm.
_LOCAL_SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_TASKS_PER_NODE")


def limit_threads(threads: int) -> int:
    """Set the number of threads of linear algebra and return it. Local.

    What the user set in the environment stays, unless `threads` says otherwise. No effect on
    libraries that are loaded already.

    Args:
        threads: threads a rank; 0: cores that this process may use divided by the ranks of the node.
    """
    if threads == 0 and (given := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit():
        return int(given)
    chosen = threads or max(usable_cores() // ranks_on_node(), 1)
    if "numpy" not in sys.modules:
        for name in _VARIABLES:
            os.environ[name] = str(chosen)
    return chosen


def ranks_on_node() -> int:
    """Return how many ranks the launcher put on this node (1 without a launcher). Local."""
    for name in _LOCAL_SIZE_VARIABLES:
        value = os.environ.get(name, "").split("(")[0].split(",")[0]
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 1


def threads_exceed_cores() -> bool:
    """Tell whether nobody limited the threads of this node's ranks, and together they are more than its cores. Local."""
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return not any(name in os.environ for name in _VARIABLES) and bound * ranks_on_node() > usable_cores()


@cache
def is_oversubscribed() -> bool:
    """Return whether this node has more ranks than cores, as far as the launcher tells. Local; a fact of the job."""
    return ranks_on_node() > usable_cores()


def usable_cores() -> int:
    """Return how many cores this process may run on. Local.

    A launcher may bind every rank to cores of its own; a rank bound so counts them times the ranks.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0))
    return bound if bound == os.cpu_count() else bound * ranks_on_node()
