"""Turn what goes wrong on one rank into the same CheckpointError on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lepton_mpi.comm.agreement import raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError, LeptonError
from lepton_mpi.runtime.mpi import MPI


@collective("comm")
@contextmanager
def failing_together(comm: MPI.Intracomm, task: str) -> Iterator[None]:
    """Run a block of local work; if it fails on any rank, fail on all.

    Collective over comm, at the end of the block.

    Args:
        comm: communicator whose ranks run the block.
        task: what the block does, for the message: "cannot <task>: ...".

    Raises:
        CheckpointError: the block raised on some rank; other LeptonErrors keep their type.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = as_checkpoint_error(raised, task)
    raise_together(comm, error)


def as_checkpoint_error(error: BaseException, task: str) -> LeptonError:
    """Return a LeptonError unchanged and any other error as a CheckpointError that says what failed. Local."""
    if isinstance(error, LeptonError):
        return error
    advice = "; check free space, quota and permissions there" if isinstance(error, OSError) else ""
    return CheckpointError(f"cannot {task}: {type(error).__name__}: {error}{advice}")
