"""Two ways for all ranks to put their extents into one data file."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s
from numpy.typing import NDArray

from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.hdf5 import select_block
from lepton_mpi.checkpoint.layout import Extent, TensorInfo, cut_block, digest, file_runs
from lepton_mpi.checkpoint.own_cores import map_on_own_cores
from lepton_mpi.checkpoint.plan import WritePlan
from lepton_mpi.checkpoint.space import start_sync
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.checkpoint.write_process import PIECE_NBYTES, crc32, write_fully
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

DRIVERS = ("auto", "mpio", "direct")

# What a rank writes at a time through MPI-IO on its own: a file system that is busy with what came before holds a longer write up.
_ALONE_NBYTES = 8 * 2**20

# Open MPI, MPICH, MPICH's standard ABI, Cray MPICH; Fortran and C++ bindings have longer names.
_MPI_LIBRARY = re.compile(r"lib(mpi|mpich|mpi_abi|mpi_cray|mpi_gnu_\d+)\.so[.\d]*")


@collective("comm")
def choose_driver(comm: MPI.Intracomm, requested: str) -> str:
    """Return "mpio" or "direct", the same on all ranks.

    Collective over comm.

    Args:
        comm: communicator that will write.
        requested: one of `DRIVERS`; "auto" takes mpio where several ranks can use it and it is not
            known to corrupt files, else direct.

    Raises:
        CheckpointError: the name is unknown, or mpio was asked for and some rank cannot use it.
    """
    obstacles = comm.allgather(mpio_obstacle())
    obstacle = next((f"rank {rank}: {text}" for rank, text in enumerate(obstacles) if text), "")
    if requested not in DRIVERS:
        raise CheckpointError(f"checkpoint.driver = {requested!r}: expected one of {', '.join(DRIVERS)}")
    if requested == "mpio" and obstacle:
        raise CheckpointError(
            f'checkpoint.driver = "mpio" is impossible ({obstacle}). Build h5py for this MPI: CC=mpicc HDF5_MPI=ON '
            "HDF5_DIR=<parallel HDF5> pip install --no-build-isolation --no-binary=h5py h5py; or use "
            'checkpoint.driver = "direct", which needs none of it'
        )
    if requested != "auto":
        return requested
    return "mpio" if comm.size > 1 and not obstacle and not ompio_corrupts(*MPI.get_vendor()) else "direct"


def mpio_obstacle() -> str:
    """Return why this process cannot use HDF5's MPI-IO driver; empty if it can. Local."""
    if not h5py.get_config().mpi:
        return "h5py was built without MPI"
    maps = ""
    with contextlib.suppress(OSError):  # outside Linux nobody tells
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    libraries = mpi_libraries(maps)
    if len(libraries) > 1:
        return f"h5py and mpi4py loaded different MPI libraries, {' and '.join(sorted(libraries))}"
    return ""


def mpi_libraries(maps: str) -> set[str]:
    """Return the MPI libraries among the mappings of a process, given as the text of /proc/<pid>/maps. Local."""
    files = {fields[5] for line in maps.splitlines() if len(fields := line.split(maxsplit=5)) == 6}
    return {file for file in files if _MPI_LIBRARY.fullmatch(os.path.basename(file))}


def ompio_corrupts(vendor: str, version: tuple[int, int, int]) -> bool:
    """Say whether this MPI's MPI-IO may lose parts of collective writes (open-mpi/ompi issue 12718). Local."""
    return vendor == "Open MPI" and version < (5, 0, 6) and not (4, 1, 7) <= version < (5, 0, 0)


def write_direct(file: Path, plan: WritePlan, offsets: Mapping[str, int]) -> list[int]:
    """Write this rank's extents at their byte offsets in the file.

    Local; no two ranks write the same byte. Each piece is digested just before it is written, while it is in the cache.

    Args:
        file: the data file, created beforehand.
        plan: what to write.
        offsets: byte offset of each tensor in the file.

    Returns:
        The CRC-32 of each extent, taken of the source memory.

    Raises:
        OSError: the file cannot be written.
    """
    descriptor = os.open(file, os.O_WRONLY)

    def write(extent: Extent) -> int:
        found, start = 0, offsets[extent.path]
        for position, run in _runs(extent, plan.tensors[extent.path]):
            for first in range(0, len(run), PIECE_NBYTES):
                piece = run[first : first + PIECE_NBYTES]
                found = crc32(piece, found)
                write_fully(descriptor, piece, start + position + first)
        start_sync(descriptor)  # the disk works while the next extents come
        return found

    try:
        return map_on_own_cores(write, plan.extents)
    finally:
        os.close(descriptor)


@collective("comm")
def write_mpio(comm: MPI.Intracomm, file: Path, plan: WritePlan, storage: Storage = DEFAULT_STORAGE) -> list[int]:
    """Write all ranks' extents with MPI-IO.

    Collective over comm. Large contiguous extents each rank writes on its own. For the others every rank makes the same number
    of collective writes, empty ones included and after an error too, since a rank that leaves early would hang the others.

    Returns:
        The CRC-32 of each of this rank's extents, taken of the source memory.

    Raises:
        CheckpointError: writing failed on some rank.
    """
    with contextlib.ExitStack() as stack:
        with failing_together(comm, f"open {file}"):
            digests = map_on_own_cores(digest, [extent.array for extent in plan.extents])
            descriptor = os.open(file, os.O_RDWR)  # a rank that cannot see the file must say so before the collective open
            stack.callback(os.close, descriptor)
        info = storage.make_info()
        stack.callback(info.Free)
        with failing_together(comm, f"write {file}"):
            data = h5py.File(file, "r+", driver="mpio", comm=comm, info=info, libver=("v110", "v110"), locking=False)
        try:
            with failing_together(comm, f"write {file}"):
                _write_rounds(data, plan, descriptor)
        except CheckpointError:
            # After a failed write HDF5 1.10.8 hangs in a close without a flush; after a good one the close and fsync do.
            with contextlib.suppress(OSError, RuntimeError):
                data.flush()
            raise
        finally:
            with failing_together(comm, f"close {file}"):
                data.close()
    return digests


def _write_rounds(data: h5py.File, plan: WritePlan, descriptor: int) -> None:
    """Write what this rank writes on its own, take part in all collective writes, then raise what went wrong first.

    The descriptor is of the same file.
    """
    transfer, alone = h5p.create(h5p.DATASET_XFER), h5p.create(h5p.DATASET_XFER)
    transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    alone.set_dxpl_mpio(h5py.h5fd.MPIO_INDEPENDENT)
    pending: dict[str, list[Extent]] = {path: [] for path in plan.tensors}
    for extent in plan.extents:
        pending[extent.path].append(extent)
    error: Exception | None = None
    for path, extents in pending.items():
        dataset = data[path].id
        for extent in extents if not plan.num_rounds[path] else ():
            for starts, piece in cut_block(extent.starts, extent.array, _ALONE_NBYTES):
                error = error or _write_round(dataset, plan.tensors[path], Extent(path, starts, piece), alone)
        for i in range(plan.num_rounds[path]):
            mine = extents[i] if i < len(extents) and error is None else None
            raised = _write_round(dataset, plan.tensors[path], mine, transfer)
            error = error or raised
        if extents and not error:
            start_sync(descriptor)  # the disk works while the next extents come
    if error is not None:
        raise error


def _write_round(dataset: h5d.DatasetID, info: TensorInfo, extent: Extent | None, transfer: h5p.PropDXID) -> Exception | None:
    """Write one extent; take part in one collective write, with nothing if need be. Return, not raise, what went wrong."""
    error: Exception | None = None
    selection = None
    if extent is not None:
        try:
            selection = _select_extent(dataset, extent)
        except Exception as raised:
            error = raised
    try:
        memory, space, array = selection or _select_nothing(dataset, info)
        dataset.write(memory, space, array, dxpl=transfer)
    except Exception as raised:
        error = error or raised
    return error


def _select_extent(dataset: h5d.DatasetID, extent: Extent) -> tuple[h5s.SpaceID, h5s.SpaceID, NDArray[Any]]:
    """Return the dataspaces in memory and file of an extent, and its contiguous elements."""
    shape = extent.array.shape
    memory = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    return memory, select_block(dataset, extent.starts, shape), np.ascontiguousarray(extent.array)


def _select_nothing(dataset: h5d.DatasetID, info: TensorInfo) -> tuple[h5s.SpaceID, h5s.SpaceID, NDArray[Any]]:
    memory, space = h5s.create_simple((1,)), dataset.get_space()
    memory.select_none()
    space.select_none()
    return memory, space, np.zeros(1, info.dtype)


def _runs(extent: Extent, info: TensorInfo) -> Iterator[tuple[int, memoryview]]:
    """Yield `(byte position in the tensor, bytes)` of the pieces of an extent that are contiguous in the file."""
    first, run_nbytes, dims = file_runs(extent.starts, extent.array.shape, info)
    data = np.ascontiguousarray(extent.array).reshape(-1).view(np.uint8).data
    for i, steps in enumerate(itertools.product(*(range(0, count * stride, stride) for count, stride in dims))):
        yield first + sum(steps), data[i * run_nbytes : (i + 1) * run_nbytes]
