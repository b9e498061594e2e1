"""How a data file lies on a parallel file system: hints for MPI-IO, and where HDF5 puts datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

# Below one page alignment gains nothing; above 16 MiB (the largest usual Lustre stripe) it wastes space.
_MIN_ALIGNMENT_NBYTES, _MAX_ALIGNMENT_NBYTES = 4096, 16 * 2**20


@dataclass(frozen=True)
class Storage:
    """Layout of new data files.

    Attributes:
        hints: "name=value" each, handed to MPI-IO: striping_factor, striping_unit, cb_nodes, romio_cb_write, IBM_largeblock_io, ...
            MPI ignores those that it does not know (MPI 4.1, section 14.2.8).
        alignment: large datasets begin at multiples of so many bytes; 0: of the I/O size that the file system states.
    """

    hints: tuple[str, ...] = ()
    alignment: int = 0

    def pairs(self) -> dict[str, str]:
        """Return the hints by name. Local.

        Raises:
            CheckpointError: one is not of the form name=value.
        """
        return parse_hints(self.hints)

    def make_info(self) -> MPI.Info:
        """Return the hints as an MPI object, which the caller frees. Local."""
        info = MPI.Info.Create()
        for name, value in self.pairs().items():
            info.Set(name, value)
        return info


DEFAULT_STORAGE = Storage()


def alignment_interval(folder: Path, storage: Storage) -> int:
    """Return the multiples of bytes at which large datasets of a file in a folder begin. Local."""
    # st_blksize is the I/O size the file system asks for: a page on local disks, megabytes on parallel ones.
    return storage.alignment or min(max(os.stat(folder).st_blksize, _MIN_ALIGNMENT_NBYTES), _MAX_ALIGNMENT_NBYTES)


def make_empty(file: Path, storage: Storage) -> None:
    """Make an empty file; with hints through MPI-IO, since stripes are chosen when a file is made and never again. Local.

    Raises:
        OSError: there is one of that name, or the file system refused.
    """
    if not storage.hints:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return
    info = storage.make_info()
    try:
        MPI.File.Open(MPI.COMM_SELF, str(file), MPI.MODE_CREATE | MPI.MODE_EXCL | MPI.MODE_WRONLY, info).Close()
    except MPI.Exception as error:
        raise OSError(f"MPI-IO cannot make {file} with the hints {', '.join(storage.hints)}: {error}") from error
    finally:
        info.Free()


def parse_hints(hints: Sequence[str]) -> dict[str, str]:
    """Return hints "name=value" by name. Local.

    Raises:
        CheckpointError: one is not of that form, or longer than MPI takes.
    """
    found: dict[str, str] = {}
    for hint in hints:
        name, sign, value = (part.strip() for part in hint.partition("="))
        if not (name and sign and value) or len(name) >= MPI.MAX_INFO_KEY or len(value) >= MPI.MAX_INFO_VAL:
            raise CheckpointError(f'checkpoint.hints: expected "name=value", such as "striping_factor=8", got {hint!r}')
        found[name] = value
    return found
