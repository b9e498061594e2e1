"""Whatever goes wrong on one rank, all ranks raise the same error and no old checkpoint is lost."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import subprocess

import numpy as np
import pytest

from lepton_mpi.checkpoint import drivers, writer
from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.drivers import choose_driver, mpio_obstacle
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, MANIFEST_FILE, TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.ranges import split_range

pytestmark = pytest.mark.mpi

DRIVERS = ["direct", pytest.param("mpio", marks=pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-"))]
MPIO_RESERVED = [pytest.param("mpio", True, marks=pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-"))]


def make_slices(comm, rows=64, path="/param/w"):
    start, stop = split_range(rows, comm.size, comm.rank)
    array = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8)[start:stop]
    return [TensorSlice(path, (rows, 8), (start, 0), array)]


def expect_failure(comm, root, slices, driver="direct", step=2):
    """Write a checkpoint that must fail; return the message after checking that all ranks have it and nothing else remains."""
    before = sorted(path.name for path in root.iterdir()) if root.exists() else []
    comm.Barrier()
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(comm, root, step, slices, {}, driver)
    comm.Barrier()
    messages = comm.allgather(str(caught.value))
    assert len(set(messages)) == 1, messages
    assert (sorted(path.name for path in root.iterdir()) if root.exists() else []) == before
    for path in list_checkpoints(root):
        verify_checkpoint(comm, path)
    return messages[0]


def fail_on_last_rank(monkeypatch, comm, target, name, error):
    if comm.rank == comm.size - 1:

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(target, name, fail)


@pytest.mark.parametrize("step", [1, 2])
def test_write_error_on_one_rank(comm, root, monkeypatch, step):
    write_checkpoint(comm, root, 1, make_slices(comm), {})
    fail_on_last_rank(monkeypatch, comm, drivers.os, "pwrite", OSError(errno.ENOSPC, "No space left on device"))
    message = expect_failure(comm, root, make_slices(comm), step=step)
    assert "No space left on device" in message
    assert "free space" in message
    assert comm.size == 1 or f"rank {comm.size - 1}" in message


def test_a_write_that_takes_nothing(comm, root, monkeypatch):
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(drivers.os, "pwrite", lambda fd, data, position: 0)
    assert "took none of" in expect_failure(comm, root, make_slices(comm))


@pytest.mark.parametrize("driver", DRIVERS)
def test_sync_error_on_one_rank(comm, root, monkeypatch, driver):
    write_checkpoint(comm, root, 1, make_slices(comm), {})
    fail_on_last_rank(monkeypatch, comm, writer, "sync", OSError(errno.EIO, "Input/output error"))
    assert "Input/output error" in expect_failure(comm, root, make_slices(comm), driver)


@pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-")
def test_mpio_error_on_one_rank_lets_the_others_finish_their_collective_writes(comm, root, monkeypatch):
    fail_on_last_rank(monkeypatch, comm, drivers, "select_block", MemoryError("no memory for the block"))
    assert "no memory for the block" in expect_failure(comm, root, make_slices(comm) + make_slices(comm, path="/param/v"), "mpio")


@pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-")
def test_mpio_file_invisible_to_one_rank(comm, root, monkeypatch):
    if comm.rank == comm.size - 1:
        true_open = os.open

        def fail_on_data(path, *args, **kwargs):
            if str(path).endswith(DATA_FILE):
                raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
            return true_open(path, *args, **kwargs)

        monkeypatch.setattr(drivers.os, "open", fail_on_data)
    assert "No such file" in expect_failure(comm, root, make_slices(comm), "mpio")


@pytest.mark.skipif(bool(mpio_obstacle()), reason=mpio_obstacle() or "-")
def test_mpio_error_while_closing_on_one_rank(comm, root, monkeypatch):
    true_close, last = drivers.h5py.File.close, comm.rank == comm.size - 1

    def close(data):
        through_mpi = data.id.valid and data.driver == "mpio"
        true_close(data)
        if through_mpi and last:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(drivers.h5py.File, "close", close)
    assert "cannot close" in expect_failure(comm, root, make_slices(comm), "mpio")


def test_lost_write_is_found_by_reading_back(comm, root, monkeypatch):
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(drivers, "write_fully", lambda descriptor, data, position: None)
    message = expect_failure(comm, root, make_slices(comm))
    assert "CRC-32" in message
    assert "/param/w" in message


def test_commit_error_on_rank_0(comm, root, monkeypatch):
    write_checkpoint(comm, root, 2, make_slices(comm), {})
    if comm.rank == 0:

        def fail(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(writer, "commit", fail)
    assert "Permission denied" in expect_failure(comm, root, make_slices(comm))


def test_root_that_cannot_be_made(comm, root):
    if comm.rank == 0:
        root.parent.joinpath("file").write_text("")
    comm.Barrier()
    with pytest.raises(CheckpointError, match="cannot create a checkpoint in"):
        write_checkpoint(comm, root.parent / "file" / "checkpoints", 1, make_slices(comm), {})


@pytest.mark.parametrize(("driver", "reserve"), [("direct", True), ("direct", False), *MPIO_RESERVED])
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_disk_full(comm, root, monkeypatch, driver, reserve):
    if not reserve:
        monkeypatch.setattr(writer, "reserve_space", lambda file: None)
    if comm.rank == 0:
        root.mkdir()
    comm.Barrier()
    with contextlib.ExitStack() as stack:
        mounted = True
        if comm.rank == 0:
            command = ["mount", "-t", "tmpfs", "-o", "size=1m", "lepton_test", str(root)]
            mount = subprocess.run(command, capture_output=True, check=False)
            mounted = mount.returncode == 0
            if mounted:
                stack.callback(subprocess.run, ["umount", str(root)], check=True)
        if not comm.bcast(mounted, root=0):
            pytest.skip("mounting a tmpfs is not allowed here")
        try:
            write_checkpoint(comm, root, 1, make_slices(comm), {}, driver)
            assert "No space left" in expect_failure(comm, root, make_slices(comm, rows=2**17), driver)
            assert [path.name for path in list_checkpoints(root)] == ["step-000000001"]
        finally:
            comm.Barrier()


@pytest.mark.mpi(min_size=2)
def test_missing_slices(comm, root):
    last = comm.rank == comm.size - 1
    message = expect_failure(comm, root, [] if last else make_slices(comm, rows=4 * comm.size))
    assert f"{32 * (comm.size - 1)} of its {32 * comm.size} elements" in message


@pytest.mark.mpi(min_size=2)
def test_overlap_between_ranks(comm, root):
    whole = np.zeros((6, 4), np.float32)
    rows = [whole[:3], whole[2:]]
    slices = [TensorSlice("/w", (6, 4), (2 * comm.rank, 0), rows[comm.rank])] if comm.rank < 2 else []
    message = expect_failure(comm, root, slices)
    assert "rank 0's block [0:3, 0:4]" in message
    assert "rank 1's [2:6, 0:4]" in message


@pytest.mark.mpi(min_size=2)
def test_ranks_disagree_about_a_tensor(comm, root):
    shape = (2, 4) if comm.rank == 0 else (4, 2)
    assert "must agree" in expect_failure(comm, root, [TensorSlice("/w", shape, (0, 0), np.zeros((1, 1)))])


def test_slice_impossible_on_one_rank(comm, root):
    path = "/meta/w" if comm.rank == comm.size - 1 else "/param/w"
    assert "outside /meta" in expect_failure(comm, root, make_slices(comm, path=path))


def flip(file, position):
    with open(file, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 0x10]))


def test_every_flipped_byte_is_detected_on_all_ranks(comm, root):
    path = write_checkpoint(comm, root, 1, make_slices(comm), {"seed": 1})
    size = (path / DATA_FILE).stat().st_size
    rng = np.random.default_rng(3)
    positions = [0, size - 1, *rng.integers(0, size, 60).tolist()]
    for position in positions:
        if comm.rank == 0:
            flip(path / DATA_FILE, position)
        comm.Barrier()
        with pytest.raises(CheckpointError) as caught:
            verify_checkpoint(comm, path)
        assert len(set(comm.allgather(str(caught.value)))) == 1
        assert str(path / DATA_FILE) in str(caught.value)
        comm.Barrier()
        if comm.rank == 0:
            flip(path / DATA_FILE, position)
        comm.Barrier()
    verify_checkpoint(comm, path)


def test_damaged_tensor_is_named(comm, root):
    path = write_checkpoint(comm, root, 1, make_slices(comm, path="/param/a") + make_slices(comm, path="/param/b"), {})
    with CheckpointReader(path) as reader:
        position = reader._data.offset("/param/b") + 64 * 8 * 4 - 1
    if comm.rank == 0:
        flip(path / DATA_FILE, position)
    comm.Barrier()
    with pytest.raises(CheckpointError, match=r"tensor /param/b, extent \[\d+:64, 0:8\]: expected CRC-32"):
        verify_checkpoint(comm, path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "no_manifest"])
def test_resume_falls_back_to_the_older_checkpoint(comm, root, caplog, damage):
    log = logging.getLogger("resume_test")
    assert find_resumable(comm, root, log) is None
    paths = [write_checkpoint(comm, root, step, make_slices(comm), {}) for step in (1, 2)]
    assert find_resumable(comm, root, log) == paths[1]
    comm.Barrier()
    if comm.rank == 0:
        data, manifest = paths[1] / DATA_FILE, paths[1] / MANIFEST_FILE
        if damage == "flip":
            flip(data, data.stat().st_size // 2)
        elif damage == "truncate":
            os.truncate(data, data.stat().st_size - 1)
        elif damage == "delete":
            data.unlink()
        elif damage == "manifest":
            manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
        else:
            manifest.unlink()
    comm.Barrier()
    with caplog.at_level(logging.WARNING, logger="resume_test"):
        assert find_resumable(comm, root, log) == paths[0]
    warned = [record for record in caplog.records if "step-000000002 IS DAMAGED" in record.getMessage()]
    assert len(warned) == (1 if comm.rank == 0 else 0)


def test_resume_refuses_to_start_over_when_all_are_damaged(comm, root):
    path = write_checkpoint(comm, root, 1, make_slices(comm), {})
    comm.Barrier()
    if comm.rank == 0:
        (path / DATA_FILE).unlink()
    comm.Barrier()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints can be used"):
        find_resumable(comm, root, logging.getLogger(__name__))


def test_driver_choice(comm, monkeypatch):
    monkeypatch.setattr(drivers, "ompio_corrupts", lambda vendor, version: False)
    monkeypatch.setattr(drivers, "mpio_obstacle", lambda: "")
    assert choose_driver(comm, "auto") == ("mpio" if comm.size > 1 else "direct")
    assert choose_driver(comm, "mpio") == "mpio"
    assert choose_driver(comm, "direct") == "direct"
    with pytest.raises(CheckpointError, match="expected one of auto, mpio, direct"):
        choose_driver(comm, "posix")
    monkeypatch.setattr(drivers, "ompio_corrupts", lambda vendor, version: True)
    assert choose_driver(comm, "auto") == "direct"
    last = comm.size - 1
    monkeypatch.setattr(drivers, "mpio_obstacle", lambda: "h5py was built without MPI" if comm.rank == last else "")
    assert choose_driver(comm, "auto") == "direct"
    with pytest.raises(CheckpointError, match=rf"rank {last}: h5py was built without MPI.*HDF5_MPI=ON"):
        choose_driver(comm, "mpio")
