"""Bring a checkpoint of an older format version to today's: one pure function a version, and the copy they steer.

Versions:
    1.0: the first.
    1.1: the manifest says when and on which host it was written. A training checkpoint always has the attributes `best` and
        `stale`, which some writers of 1.0 did not know.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.hdf5 import AttributeValue
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, FORMAT_MINOR, STEP_FOLDER, TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.runtime.whole_file import sync

Version = tuple[int, int]

CURRENT_VERSION: Final[Version] = (FORMAT_MAJOR, FORMAT_MINOR)
# What the writer sets anew.
_WRITERS_OWN: Final = frozenset(("format_major", "format_minor", "writer", "step"))


@final
@dataclass(frozen=True)
class Content:
    """What a migration may change: everything but the elements of tensors.

    Attributes:
        attributes: the `/meta` attributes without the writer's own.
        sources: path of each tensor, and the path it has in the old checkpoint.
    """

    attributes: Mapping[str, AttributeValue]
    sources: Mapping[str, str]


def _from_1_0(content: Content) -> Content:
    """Add what early writers did not know: the best metric so far and how long ago it was. Only training has an epoch."""
    if "epoch" not in content.attributes:
        return content
    return replace(content, attributes={"best": math.nan, "stale": 0} | dict(content.attributes))


# The version that each one starts from, the version it leads to, and how.
MIGRATIONS: Final[Mapping[Version, tuple[Version, Callable[[Content], Content]]]] = {(1, 0): ((1, 1), _from_1_0)}


def migrate(content: Content, version: Version) -> Content:
    """Return the content as a writer of today would have had it.

    Local and pure.

    Args:
        content: of the old checkpoint.
        version: its format version.

    Raises:
        CheckpointError: no migration leads from there to `CURRENT_VERSION`.
    """
    while version != CURRENT_VERSION:
        if version not in MIGRATIONS:
            raise CheckpointError(
                f"no conversion leads from format {version[0]}.{version[1]} to {CURRENT_VERSION[0]}.{CURRENT_VERSION[1]}; "
                "use the lepton_mpi that wrote the checkpoint, or a newer one"
            )
        version, step = MIGRATIONS[version]
        content = step(content)
    return content


@collective("comm")
def convert_checkpoint(comm: MPI.Intracomm, old: Path, new: Path) -> Version:
    """Write a checkpoint of an older format anew, as the current one.

    Collective over comm. The old one is verified first and left as it is; the new one is verified, durable, and appears whole or
    not at all. Tensors pass through the page cache piece by piece; no rank holds them in memory.

    Args:
        comm: ranks that share the copying.
        old: folder of the old checkpoint.
        new: folder of the new one, which must not exist; the folder it is to lie in must.

    Returns:
        The version that was converted.

    Raises:
        CheckpointError: the old one is damaged or of the current version already, or the new one cannot be written.
    """
    verify_checkpoint(comm, old)
    draft: Path | None = None
    with failing_together(comm, f"convert {old}"), CheckpointReader(old) as reader:
        version = (FORMAT_MAJOR, reader.manifest.format_minor)
        if version >= CURRENT_VERSION:
            raise CheckpointError(f"{old}: it is of format {version[0]}.{version[1]} already, there is nothing to convert")
        sources = {path: path for path in reader.tensors}
        own = {name: value for name, value in reader.attributes.items() if name not in _WRITERS_OWN}
        content = migrate(Content(own, sources), version)
        slices = list(_share(reader, content, comm.Get_size(), comm.Get_rank()))
        step = reader.step
        if comm.Get_rank() == 0:
            draft = _make_draft(new, step)
    draft = comm.bcast(draft, root=0)
    assert draft is not None
    try:
        written = write_checkpoint(comm, draft, step, slices, content.attributes)
        with failing_together(comm, f"give {new} its name"):
            if comm.Get_rank() == 0:
                written.rename(new)  # refused where a folder with files came into being meanwhile
                sync(new.absolute().parent)
    finally:
        if comm.Get_rank() == 0:
            shutil.rmtree(draft, ignore_errors=True)
    return version


def _make_draft(new: Path, step: int) -> Path:
    """Make the folder that the new checkpoint grows in, beside the place that it is to have."""
    named = STEP_FOLDER.fullmatch(new.name)
    if named and int(named[1]) != step:
        raise CheckpointError(f"{new}: the checkpoint is of step {step}, so no reader would take it by that name; give another")
    if new.exists() or new.is_symlink():
        raise CheckpointError(f"{new}: it exists already; give a new folder")
    if not new.absolute().parent.is_dir():
        raise CheckpointError(f"{new}: the folder that it is to lie in does not exist; make it first")
    draft = new.absolute().parent / f".{new.name}-{secrets.token_hex(8)}.tmp"
    draft.mkdir()
    return draft


def _share(reader: CheckpointReader, content: Content, parts: int, part: int) -> Iterator[TensorSlice]:
    """Yield this rank's rows of every tensor, mapped from the old file."""
    for path, source in content.sources.items():
        info = reader.tensors[source]
        if not info.nbytes:
            array: Any = np.empty(info.shape, info.dtype)
        else:
            array = np.memmap(reader.path / DATA_FILE, info.dtype, "r", reader.offset(source), info.shape)
        if info.shape:
            start, stop = split_range(info.shape[0], parts, part)
            yield TensorSlice(path, info.shape, (start, *(0,) * (len(info.shape) - 1)), array[start:stop])
        elif part == 0:
            yield TensorSlice(path, (), (), array)
