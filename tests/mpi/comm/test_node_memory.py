"""Memory of a node: zeroed, shared, gone by itself, and refused with a message that helps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.comm import node_memory
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.errors import SharedMemoryError
from lepton_mpi.runtime.mpi import MPI


def segments() -> list[str]:
    """Return the segments of this job in /dev/shm; they are named by the process that makes them."""
    return [path.name for path in Path("/dev/shm").glob("lepton-*") if int(path.name.split("-")[1]) in PIDS]


PIDS: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_stays(comm: MPI.Intracomm) -> object:
    PIDS[:] = comm.allgather(os.getpid())
    yield
    comm.Barrier()
    assert segments() == []


@pytest.mark.mpi
def test_what_one_rank_writes_all_others_read(comm: MPI.Intracomm) -> None:
    plan = MemoryPlan()
    starts = [plan.place(1000) for _ in range(comm.size)]
    memory = NodeMemory(comm, plan.nbytes)
    arrays = [memory.array(start, 250, np.float32) for start in starts]
    assert all(not array.any() for array in arrays)
    comm.Barrier()
    arrays[comm.rank][:] = comm.rank + 1
    comm.Barrier()
    assert [array[-1] for array in arrays] == [rank + 1 for rank in range(comm.size)]
    assert segments() == []  # the name goes as soon as all have mapped it, so a killed job leaves nothing


@pytest.mark.mpi
def test_arrays_outlive_the_object(comm: MPI.Intracomm) -> None:
    array = NodeMemory(comm, 8192).array(4096, 8, np.int64)
    other = NodeMemory(comm, 8192).array(4096, 8, np.int64)
    comm.Barrier()
    if comm.rank == 0:
        array[:] = 7
        other[:] = 8
    comm.Barrier()
    assert (array == 7).all()
    assert (other == 8).all()


@pytest.mark.mpi
def test_a_part_without_bytes_is_no_special_case(comm: MPI.Intracomm) -> None:
    memory = NodeMemory(comm, 0)
    assert memory.nbytes == 4096
    assert memory.array(0, 0, np.float32).size == 0


@pytest.mark.mpi
def test_ranks_of_their_own_need_no_shared_memory(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "native", Refusing)
    array = NodeMemory(MPI.COMM_SELF, 4096).array(0, 4, np.float32)
    array[:] = comm.rank
    comm.Barrier()
    assert (array == comm.rank).all()


class Refusing:
    """The extension on a machine whose /dev/shm is full, or on which a rank cannot map what another made."""

    class Segment:
        anonymous = native.Segment.anonymous
        open = native.Segment.open

        @staticmethod
        def create(name: str, nbytes: int) -> native.Segment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.mpi(min_size=2)
def test_a_full_node_is_an_error_of_all_ranks(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_memory, "native", Refusing)
    with pytest.raises(SharedMemoryError, match=r"cannot share 3 MiB .*: No space left on device\. Enlarge /dev/shm") as found:
        NodeMemory(comm, 3 << 20)
    assert found.value.exit_code == 2


@pytest.mark.mpi(min_size=2)
def test_more_than_the_machine_has_is_refused_before_it_is_written(comm: MPI.Intracomm) -> None:
    """Pages are reserved when the segment is made: writing to it later cannot end in SIGBUS."""
    room = os.statvfs("/dev/shm")
    with pytest.raises(SharedMemoryError, match=r"cannot share \d+ MiB between the ranks of this node"):
        NodeMemory(comm, room.f_frsize * room.f_blocks + (1 << 40))


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_cannot_map_the_segment_ends_all(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unmappable:
        class Segment:
            create = native.Segment.create

            @staticmethod
            def open(name: str, nbytes: int) -> native.Segment:
                if comm.rank == comm.size - 1:
                    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                return native.Segment.open(name, nbytes)

    monkeypatch.setattr(node_memory, "native", Unmappable)
    with pytest.raises(SharedMemoryError, match=f"rank {comm.size - 1}: cannot share 1 MiB .*: Cannot allocate memory"):
        NodeMemory(comm, 1 << 20)
