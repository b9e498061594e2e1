"""Compare what a data file holds with the digests its writers took of their memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.hdf5 import DataFile
from lepton_mpi.checkpoint.layout import DATA_FILE, describe_block, file_runs
from lepton_mpi.checkpoint.manifest import Manifest, check_frame, frame_ranges, read_manifest
from lepton_mpi.checkpoint.own_cores import map_on_own_cores
from lepton_mpi.checkpoint.plan import check_coverage
from lepton_mpi.checkpoint.write_process import crc32
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

# Bytes that are read and digested at a time: few enough for a cache.
_READ_NBYTES = 1 << 20


@collective("comm")
def verify_checkpoint(comm: MPI.Intracomm, path: Path) -> None:
    """Check every byte of a checkpoint, the extents dealt over the ranks by size.

    Collective over comm. Rank 0 compares the manifest with itself and with all of the file that is
    not tensor elements; only then does HDF5 open it, and each rank reads its share of the extents.

    Args:
        comm: communicator that shares the reading.
        path: directory of the checkpoint, visible to all ranks.

    Raises:
        CheckpointError: on all ranks alike; names the file, and the tensor and extent where one differs.
    """
    damages = find_damage(comm, path)
    if damages:
        raise CheckpointError(f"{damages[0]}; use an older checkpoint")


@collective("comm")
def find_damage(comm: MPI.Intracomm, path: Path) -> list[str]:
    """Check every byte of a checkpoint as `verify_checkpoint` does, but go on after a damaged extent.

    Collective over comm.

    Args:
        comm: communicator that shares the reading.
        path: directory of the checkpoint, visible to all ranks.

    Returns:
        One text for each damaged extent, in the order of the tensors, on all ranks alike; none where all is well.

    Raises:
        CheckpointError: on all ranks alike; manifest or structure are damaged, so that no tensor can be looked at.
    """
    manifest: Manifest | None = None
    with failing_together(comm, f"verify {path}"):
        if comm.rank == 0:
            manifest = read_manifest(path)
            check_frame(path, manifest)
    with failing_together(comm, f"verify {path}"), DataFile(path / DATA_FILE) as data:
        paths, table = data.extent_table()
        if manifest is not None:
            _check_completeness(data, table, manifest)
        mine = list(_damaged_extents(data, paths, table[_deal(data, paths, table, comm.size) == comm.rank]))
    return [text for texts in comm.allgather(mine) for text in texts]


def _check_completeness(data: DataFile, table: NDArray[np.void], manifest: Manifest) -> None:
    """Refuse digests that leave out any byte of the file."""
    found, expected = (len(data.tensors), len(table)), (manifest.num_tensors, manifest.num_extents)
    frame = [(start, stop - start) for start, stop in manifest.frame]
    tensors = [(data.offset(path), info.nbytes) for path, info in data.tensors.items()]
    if found != expected or frame_ranges(manifest.data_nbytes, frame + tensors):
        raise CheckpointError(
            f"{data.file}: the manifest covers {expected} tensors and extents, the file has {found}, or bytes that no digest "
            "covers; it belongs to another checkpoint"
        )
    check_coverage(data.tensors, table)


def _damaged_extents(data: DataFile, paths: list[str], rows: NDArray[np.void]) -> Iterator[str]:
    """Compare some extents with their digests, and yield a text about each that differs."""
    try:
        descriptor = os.open(data.file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{data.file}: cannot be read: {error.strerror}") from error
    try:
        blocks = [_block(data, paths, row) for row in rows]
        offsets = {path: data.offset(path) for path, _, _ in blocks}
        every = map_on_own_cores(lambda block: _digest_block(descriptor, data, offsets[block[0]], *block), blocks)
        for (path, starts, shape), found, row in zip(blocks, every, rows, strict=True):
            expected = int(row["crc32"])
            if found != expected:
                yield (
                    f"{data.file}: tensor {path}, extent {describe_block(starts, shape)}: expected CRC-32 {expected:#010x}, "
                    f"found {found:#010x}; the file is damaged"
                )
    finally:
        os.close(descriptor)


def _digest_block(descriptor: int, data: DataFile, offset: int, path: str, starts: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return the CRC-32 of a block as it lies in the file, read piece by piece, each of which stays in the cache."""
    first, run_nbytes, dims = file_runs(starts, shape, data.tensors[path])
    crc, buffer = 0, memoryview(bytearray(min(run_nbytes, _READ_NBYTES)))
    for steps in itertools.product(*(range(0, count * stride, stride) for count, stride in dims)):
        position, left = offset + first + sum(steps), run_nbytes
        while left:
            try:
                count = os.preadv(descriptor, [buffer[: min(left, len(buffer))]], position)
            except OSError as error:
                raise CheckpointError(f"{data.file}: tensor {path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{data.file}: ends at byte {position}, within tensor {path}; use an older checkpoint")
            crc = crc32(buffer[:count], crc)
            position, left = position + count, left - count
    return crc


def _block(data: DataFile, paths: list[str], row: np.void) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    path = paths[int(row["tensor"])]
    ndim = len(data.tensors[path].shape)
    return path, tuple(row["starts"][:ndim].tolist()), tuple(row["shape"][:ndim].tolist())


def _deal(data: DataFile, paths: list[str], table: NDArray[np.void], parts: int) -> NDArray[np.int64]:
    """Return which rank verifies each extent: consecutive ones, about equally many bytes a rank."""
    itemsize = np.array([data.tensors[path].dtype.itemsize for path in paths], np.int64)
    ndim = np.array([len(data.tensors[path].shape) for path in paths], np.int64)
    unused = np.arange(table["shape"].shape[1]) >= ndim[table["tensor"]][:, None]
    nbytes = np.where(unused, 1, table["shape"]).prod(axis=1) * itemsize[table["tensor"]]
    middle = np.cumsum(nbytes) - nbytes / 2
    owners: NDArray[np.int64] = (middle * parts // max(int(nbytes.sum()), 1)).astype(np.int64)
    return owners
