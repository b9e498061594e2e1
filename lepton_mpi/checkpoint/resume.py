"""Find the checkpoint to go on from."""

from __future__ import annotations

import logging
from pathlib import Path

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError, FormatVersionError
from lepton_mpi.runtime.mpi import MPI


@collective("comm")
def find_resumable(comm: MPI.Intracomm, root: Path, log: logging.Logger, damaged: dict[str, str] | None = None) -> Path | None:
    """Return the newest checkpoint whose every byte is as it was written.

    Collective over comm. Damaged ones are passed over with a warning from rank 0.

    Args:
        comm: communicator that shares the verification.
        root: directory of the run's checkpoints; rank 0's counts.
        log: where warnings go.
        damaged: takes the names of those that were passed over, with what was wrong.

    Returns:
        Its directory, or None where no checkpoint was ever committed.

    Raises:
        FormatVersionError: a newer version of lepton_mpi wrote the newest whole one.
        CheckpointError: there are checkpoints, but all are damaged; starting over would bury them silently.
    """
    candidates: list[Path] = []
    with failing_together(comm, f"list the checkpoints in {root}"):
        if comm.rank == 0:
            candidates = list_checkpoints(Path(root).absolute(), damaged=True)
    candidates = comm.bcast(candidates, root=0)
    reasons = []
    for path in candidates:
        try:
            verify_checkpoint(comm, path)
        except FormatVersionError:
            raise  # going back to an older one would throw away what a newer version of lepton_mpi has trained
        except CheckpointError as error:
            reasons.append(str(error))
            if damaged is not None:
                damaged[path.name] = str(error)
            if comm.rank == 0:
                log.warning("CHECKPOINT %s IS DAMAGED and is passed over for an older one: %s", path.name, error)
        else:
            return path
    if reasons:
        raise CheckpointError(
            f"{root}: none of the {len(reasons)} checkpoints can be used. Repair one, or move them away to start over. "
            + "; ".join(reasons)
        )
    return None
