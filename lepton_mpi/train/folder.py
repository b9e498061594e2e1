"""The folder of a run: chosen, made, locked and cleaned of what killed jobs left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from lepton_mpi.checkpoint.commit import list_checkpoints, remove_unfinished
from lepton_mpi.checkpoint.folder_lock import FolderLock
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.run_folder import RunFolder, claim_folder, default_run_name
from lepton_mpi.runtime.failure import failure_path
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.whole_file import remove_leftovers

# Folder of a run for the model of its best evaluation.
BEST_MODEL = "best"


@collective("comm")
def open_folder(comm: MPI.Intracomm, config: Config) -> tuple[Path, FolderLock | None]:
    """Choose, make and lock the run folder on rank 0, for all, and return it, with the lock on rank 0.

    Collective over comm.

    Raises:
        ConfigError: the folder cannot be made, is in use, or must not be resumed; on all ranks alike.
    """
    locks: list[FolderLock] = []

    def make() -> Path:
        path = _choose_folder(config)
        RunFolder(path).close()
        lock = FolderLock(path)
        try:
            _clean_folder(path, config)
        except BaseException:
            lock.release()
            raise
        locks.append(lock)
        return path

    path = do_on_root(comm, make)
    return path, locks[0] if locks else None


def _clean_folder(path: Path, config: Config) -> None:
    """Remove what killed jobs left, in a folder that may be resumed. Local."""
    if config.run.fresh and list_checkpoints(path / "checkpoints"):
        raise ConfigError(
            f"run.fresh: the run folder {path} already holds checkpoints and would be resumed: name another run.dir, "
            "or move the folder away"
        )
    for folder in (path, path / BEST_MODEL):
        remove_unfinished(folder / "checkpoints")
        remove_leftovers(folder)
    failure_path(path).unlink(missing_ok=True)  # of an earlier run in this folder


def _choose_folder(config: Config) -> Path:
    if config.run.dir:
        return Path(config.run.dir)
    if config.run.name:
        return Path("runs") / config.run.name
    name = default_run_name(config.model.family, config.data.format, datetime.now(UTC))
    return claim_folder(Path("runs"), name)
