"""Write a checkpoint with all ranks."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import lepton_mpi
from lepton_mpi.checkpoint.commit import commit, committed_path, make_temporary
from lepton_mpi.checkpoint.drivers import choose_driver, write_direct, write_mpio
from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.hdf5 import AttributeValue, create_data_file
from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, FORMAT_MINOR, TensorInfo, TensorSlice
from lepton_mpi.checkpoint.manifest import Manifest, digest_ranges, frame_ranges
from lepton_mpi.checkpoint.plan import WritePlan, make_plan
from lepton_mpi.checkpoint.save_plan import SavePlan
from lepton_mpi.checkpoint.space import reserve_space
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.whole_file import sync


@collective("comm")
def write_checkpoint(
    comm: MPI.Intracomm,
    root: Path,
    step: int,
    slices: Sequence[TensorSlice],
    attributes: Mapping[str, AttributeValue],
    driver: str = "auto",
    storage: Storage = DEFAULT_STORAGE,
) -> Path:
    """Write, verify and commit a checkpoint; when this returns, it survives a crash of all nodes.

    Collective over comm. A checkpoint of the same step is replaced. If anything fails, on whatever rank,
    all ranks raise, nothing new is committed, and the older checkpoints are as they were.

    Args:
        comm: communicator whose ranks hold the tensors.
        root: directory of the run's checkpoints, on a file system all ranks see; rank 0's counts.
        step: global step, from 0; rank 0's counts.
        slices: what this rank writes. Over all ranks they cover each element of each tensor exactly once; a
            rank may pass none. The arrays must not change during the call.
        attributes: what else to remember, in `/meta`; rank 0's count.
        driver: "mpio", "direct" or "auto" (see `drivers.choose_driver`); rank 0's counts.
        storage: hints and alignment for parallel file systems; the same on all ranks.

    Returns:
        The directory of the checkpoint, `root/step-<9 digits>`.

    Raises:
        CheckpointError: the slices do not fit each other, or the file system failed.
    """
    with failing_together(comm, f"find {root}"):
        root = Path(root).absolute()
    root, step, driver = comm.bcast((root, step, driver), root=0)
    driver = choose_driver(comm, driver)
    plan = make_plan(comm, slices)
    places = SavePlan(slices, plan, comm, idle_check=True)
    temporary: Path | None = None
    with failing_together(comm, f"create a checkpoint in {root}"):
        if comm.rank == 0:
            temporary = make_temporary(root, step)
    temporary = comm.bcast(temporary, root=0)
    assert temporary is not None
    try:
        file = temporary / DATA_FILE
        offsets: dict[str, int] = {}
        with failing_together(comm, f"create {file}"):
            if comm.rank == 0:
                offsets = create_data_file(file, plan.tensors, meta_attributes(step, attributes), plan.table, storage)
                reserve_space(file)
        offsets = comm.bcast(offsets, root=0)
        places.place(offsets)
        digests = places.exchange(_write_data(comm, file, plan, offsets, driver, storage), comm)
        # Another rank looks, while the disk is at work: a writer's own cache would show it what it meant to write. It is the one
        # defence against MPI-IO that loses data (open-mpi/ompi issue 12718).
        with failing_together(comm, f"read back {file}"):
            places.read_back(file, digests)
        with failing_together(comm, f"sync {file}"):
            sync(file)
        with failing_together(comm, f"commit {temporary}"):
            if comm.rank == 0:
                places.write_table(file)
                commit(temporary, root, describe_file(file, step, plan.tensors, len(plan.table), offsets))
        return committed_path(root, step)
    except BaseException:
        if comm.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


@collective("comm")
def _write_data(
    comm: MPI.Intracomm, file: Path, plan: WritePlan, offsets: Mapping[str, int], driver: str, storage: Storage
) -> list[int]:
    """Write all ranks' extents, let their way to the disk begin, and return the digests of this rank's. Collective over comm."""
    if driver == "mpio":
        return write_mpio(comm, file, plan, storage)
    with failing_together(comm, f"write {file}"):
        return write_direct(file, plan, offsets)


def meta_attributes(step: int, attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Return the attributes of `/meta`: the writer's own, then the caller's. Local.

    Raises:
        CheckpointError: the step is negative, or the caller's have names of the writer's own.
    """
    own: dict[str, AttributeValue] = {
        "format_major": FORMAT_MAJOR,
        "format_minor": FORMAT_MINOR,
        "writer": f"lepton_mpi {lepton_mpi.__version__}",
        "step": step,
    }
    taken = sorted(own.keys() & attributes.keys())
    if taken or step < 0:
        raise CheckpointError(
            f"step {step}, attributes {taken}: expected a step from 0 and attributes other than {', '.join(own)}, "
            "which the writer sets"
        )
    return {**own, **attributes}


def describe_file(
    file: Path, step: int, tensors: Mapping[str, TensorInfo], num_extents: int, offsets: Mapping[str, int]
) -> Manifest:
    """Return the manifest of a data file that will not change any more. Local."""
    nbytes = file.stat().st_size
    frame = frame_ranges(nbytes, [(offset, tensors[path].nbytes) for path, offset in offsets.items() if path in tensors])
    return Manifest(
        step=step,
        writer=f"lepton_mpi {lepton_mpi.__version__}",
        data_nbytes=nbytes,
        num_tensors=len(tensors),
        num_extents=num_extents,
        frame=frame,
        frame_sha256=digest_ranges(file, frame),
        written_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        host=platform.node(),
    )
