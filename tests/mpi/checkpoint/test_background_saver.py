"""Checkpoints written beside the ranks: the same files, nothing announced too early, and failures that all learn of alike."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from lepton_mpi.checkpoint import saver as saver_module
from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import DATA_FILE, TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.saver import BackgroundSaver
from lepton_mpi.checkpoint.storage import Storage
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.ranges import split_range

pytestmark = pytest.mark.mpi


@pytest.fixture
def saver(comm):
    made = BackgroundSaver(comm)
    yield made
    made.close()


def make_slices(comm, value, rows=37):
    """Rows of one tensor, columns of another, and a scalar and odd types on one rank; none at all on a rank of its own."""
    size, rank = (comm.size - 1 or 1), comm.rank
    if rank >= size:
        return []
    start, stop = split_range(rows, size, rank)
    left, right = split_range(23, size, rank)
    by_rows = (np.arange(rows * 5, dtype=np.float32).reshape(rows, 5) + value)[start:stop]
    by_columns = (np.arange(11.0 * 23).reshape(11, 23) * value)[:, left:right]
    slices = [TensorSlice("/param/b", (rows, 5), (start, 0), by_rows), TensorSlice("/param/a", (11, 23), (0, left), by_columns)]
    if rank == 0:
        slices.append(TensorSlice("/count", (), (), np.array(value, np.int64)))
        slices.append(TensorSlice("/rank_state/bytes", (3,), (0,), np.full(3, value, np.uint8)))
        slices.append(TensorSlice("/empty", (0, 4), (0, 0), np.zeros((0, 4), np.float32)))
    return slices


def content(path):
    with CheckpointReader(path) as reader:
        tensors = {name: reader.read(name, (0,) * len(info.shape), info.shape) for name, info in reader.tensors.items()}
        attributes = {name: value for name, value in reader.attributes.items() if name != "step"}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}, attributes


def finish(saver):
    """Take steps until the save is through."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = saver.advance()
        if path is not None:
            return path
        time.sleep(0.002)
    raise AssertionError("the save does not end")


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def expect_failure(comm, saver, root, work):
    """Do what must fail, on all ranks alike, and leave nothing; return the message."""
    before = sorted(path.name for path in root.iterdir()) if root.exists() else []
    comm.Barrier()
    with pytest.raises(CheckpointError) as caught:
        work()
    assert not saver.in_flight
    comm.Barrier()
    assert len(set(comm.allgather(str(caught.value)))) == 1
    assert (sorted(path.name for path in root.iterdir()) if root.exists() else []) == before
    comm.Barrier()
    return str(caught.value)


def test_it_holds_what_a_save_that_waits_holds(comm, root, saver):
    for step in (1, 2, 3):
        slices = make_slices(comm, step)
        saver.begin(root, step, slices, {"grid": "x", "step_copy": step})
        assert saver.in_flight
        saver.settle()
        for tensor_slice in slices:
            tensor_slice.array[...] = 99  # training goes on
        path = finish(saver) if step < 3 else saver.drain()
        assert not saver.in_flight
        assert path == root / f"step-{step:09d}"
        verify_checkpoint(comm, path)
        waited = write_checkpoint(comm, root / "waited", step, make_slices(comm, step), {"grid": "x", "step_copy": step}, "direct")
        assert content(path) == content(waited)
        assert (path / DATA_FILE).stat().st_size == (waited / DATA_FILE).stat().st_size
    assert len(list_checkpoints(root)) == 3
    assert saver.drain() is None
    assert saver.advance() is None


def test_other_folders_take_turns(comm, root, saver):
    for step, folder in enumerate((root / "a", root / "b", root / "a")):
        saver.begin(folder, step, make_slices(comm, step), {})
        verify_checkpoint(comm, saver.drain())


def test_nothing_is_announced_before_all_are_done(comm, root, saver):
    """A rank whose process is stopped holds the commit up, not the other ranks' steps."""
    saver.begin(root, 0, make_slices(comm, 7), {})
    saver.drain()
    if comm.rank == 0:
        os.kill(saver.process_id, signal.SIGSTOP)
    comm.Barrier()
    saver.begin(root, 1, make_slices(comm, 7), {})
    for _ in range(30):
        assert saver.advance() is None
        time.sleep(0.002)
    assert [path.name for path in list_checkpoints(root)] == ["step-000000000"]
    comm.Barrier()
    if comm.rank == 0:
        os.kill(saver.process_id, signal.SIGCONT)
    verify_checkpoint(comm, saver.drain())


def test_a_killed_process_is_reported_and_replaced(comm, root, saver):
    saver.begin(root, 1, make_slices(comm, 7), {})
    first = saver.drain()
    old = saver.process_id
    if comm.rank == 0:
        os.kill(old, signal.SIGSTOP)  # so that it is not through before it is killed
    comm.Barrier()
    saver.begin(root, 2, make_slices(comm, 8), {})
    if comm.rank == 0:
        os.kill(old, signal.SIGKILL)

    def work():
        while saver.in_flight:
            saver.advance()

    before = [path.name for path in root.iterdir() if not path.name.endswith(".tmp")]
    comm.Barrier()
    with pytest.raises(CheckpointError, match="that writes checkpoints was killed by SIGKILL"):
        work()
    comm.Barrier()
    assert sorted(path.name for path in root.iterdir()) == sorted(before)
    assert list_checkpoints(root) == [first]
    comm.Barrier()
    saver.begin(root, 3, make_slices(comm, 9), {})
    verify_checkpoint(comm, saver.drain())
    assert comm.rank > 0 or saver.process_id != old


def test_lost_data_is_found_by_another_ranks_process(comm, root, saver, monkeypatch):
    true_exchange = saver_module.SavePlan.exchange

    def exchange(plan, digests, among):
        if comm.rank == 0:
            file = next(root.glob(".step-*")) / DATA_FILE
            with open(file, "r+b") as stream:
                stream.seek(plan.offsets["/param/b"] + 40)
                stream.write(b"\xff")
        comm.Barrier()
        return true_exchange(plan, digests, among)

    monkeypatch.setattr(saver_module.SavePlan, "exchange", exchange)
    comm.Barrier()
    saver.begin(root, 1, make_slices(comm, 7), {})
    with pytest.raises(CheckpointError, match=r"tensor /param/b, extent \[0:\d+, 0:5\]: expected CRC-32 .* lost data"):
        saver.drain()
    comm.Barrier()
    assert list(root.iterdir()) == []


def test_a_folder_deleted_meanwhile(comm, root, saver):
    saver.begin(root, 1, make_slices(comm, 7), {})
    if comm.rank == 0:
        wait_until(lambda: list(root.glob(".step-*/" + DATA_FILE)))
        saver.settle()
        time.sleep(0.05)  # it is made by the thread
        shutil.rmtree(root)
    comm.Barrier()
    with pytest.raises(CheckpointError, match="No such file or directory"):
        saver.drain()
    saver.begin(root, 2, make_slices(comm, 7), {})
    verify_checkpoint(comm, saver.drain())


def test_a_commit_that_fails(comm, root, saver, monkeypatch):
    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(saver_module, "commit", fail)
    saver.begin(root, 1, make_slices(comm, 7), {})
    with pytest.raises(CheckpointError, match=r"cannot commit .*Permission denied.*check free space"):
        saver.drain()
    comm.Barrier()
    assert list(root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_disk_full(comm, root, saver):
    if comm.rank == 0:
        root.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "lepton_test", str(root)], check=False).returncode == 0
    if not comm.bcast(mounted if comm.rank == 0 else None, root=0):
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        large = BackgroundSaver(comm)
        for _ in range(2):  # it can be tried again

            def save():
                large.begin(root, 1, make_slices(comm, 1, rows=2**17), {})
                large.drain()

            message = expect_failure(comm, large, root, save)
            assert f"cannot begin a checkpoint in {root}: OSError: [Errno 28] No space left" in message
        large.close()
        saver.begin(root, 1, make_slices(comm, 1), {})
        verify_checkpoint(comm, saver.drain())
    finally:
        comm.Barrier()
        if comm.rank == 0:
            subprocess.run(["umount", str(root)], check=True)


def test_other_slices_than_before_are_refused(comm, root, saver):
    saver.begin(root, 1, make_slices(comm, 7), {})
    saver.drain()
    message = expect_failure(comm, saver, root, lambda: saver.begin(root, 2, make_slices(comm, 7)[:-1], {}))
    assert "same blocks of the same tensors" in message


def test_impossible_attributes(comm, root, saver):
    message = expect_failure(comm, saver, root, lambda: saver.begin(root, 2, make_slices(comm, 7), {"step": 3}))
    assert "which the writer sets" in message


def test_a_rank_without_memory(comm, root, saver, monkeypatch):
    def fail(*args, **kwargs):
        raise CheckpointError("no memory")

    if comm.rank == 0:
        monkeypatch.setattr(saver_module, "BackgroundWriter", fail)
    comm.Barrier()
    assert "no memory" in expect_failure(comm, saver, root, lambda: saver.begin(root, 2, make_slices(comm, 7), {}))
    monkeypatch.undo()
    saver.begin(root, 2, make_slices(comm, 7), {})
    verify_checkpoint(comm, saver.drain())


def test_abandoned_on_an_error(comm, root, saver):
    saver.begin(root, 1, make_slices(comm, 7), {})
    saver.advance()
    saver.abandon()
    comm.Barrier()
    assert not saver.in_flight
    assert not root.exists() or list(root.iterdir()) == []


def hold_up(monkeypatch, seconds):
    """Let copies take a while before they read anything, and return a list of what they then read."""
    true_copy, copied = saver_module.SavePlan.copy, []

    def copy(plan, slices, memory, dropped):
        time.sleep(seconds)
        copied.append([part.array.copy() for part in slices])
        return true_copy(plan, slices, memory, dropped)

    monkeypatch.setattr(saver_module.SavePlan, "copy", copy)
    return copied


@pytest.mark.parametrize("settles", [True, False])
def test_what_changes_after_settle_is_not_saved(comm, root, saver, monkeypatch, settles):
    """And what changes without it is: the copy is made beside whoever began it."""
    hold_up(monkeypatch, 0.2)
    slices, expected = make_slices(comm, 3), make_slices(comm, 3 if settles else 99)
    start = time.monotonic()
    saver.begin(root, 1, slices, {})
    assert time.monotonic() - start < 0.2 or comm.size > 1  # nobody waits for it here
    if settles:
        saver.settle()
    comm.Barrier()
    for changed, new in zip(slices, make_slices(comm, 99), strict=True):
        changed.array[...] = new.array
    path = saver.drain()
    waited = write_checkpoint(comm, root / "waited", 1, expected, {}, "direct")
    assert content(path) == content(waited)


def test_settle_waits_for_nothing_else(comm, root, saver):
    saver.settle()
    saver.begin(root, 1, make_slices(comm, 7), {})
    saver.drain()
    saver.settle()


def test_a_copy_that_fails_on_one_rank(comm, root, saver, monkeypatch):
    def fail(*args):
        raise MemoryError("no memory for the copy")

    if comm.rank == comm.size // 2:
        monkeypatch.setattr(saver_module.SavePlan, "copy", fail)
    writes = comm.allgather(bool(make_slices(comm, 7)))[comm.size // 2]
    comm.Barrier()

    def save():
        saver.begin(root, 1, make_slices(comm, 7), {})
        saver.settle()  # it is no use to wait any longer
        saver.drain()

    if writes:
        if comm.rank == 0:
            root.mkdir()
        assert "MemoryError: no memory for the copy" in expect_failure(comm, saver, root, save)
    monkeypatch.undo()
    comm.Barrier()
    saver.begin(root, 2, make_slices(comm, 9), {})
    verify_checkpoint(comm, saver.drain())


def test_no_thread_left(comm, root, saver, monkeypatch):
    def fail(*args):
        raise RuntimeError("can't start new thread")

    if comm.rank == 0:
        root.mkdir()
        monkeypatch.setattr(saver_module.Worker, "start", fail)
    comm.Barrier()

    def save():
        saver.begin(root, 1, make_slices(comm, 7), {})
        saver.settle()
        saver.drain()

    assert "can't start new thread" in expect_failure(comm, saver, root, save)


def test_an_interrupt_while_waiting_for_the_copy(comm, root, saver, monkeypatch):
    hold_up(monkeypatch, 0.5)
    saver.begin(root, 1, make_slices(comm, 7), {})

    def interrupt(number, frame):
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        if make_slices(comm, 7):
            with pytest.raises(KeyboardInterrupt):
                saver.settle()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    saver.abandon()
    comm.Barrier()
    assert not root.exists() or list(root.iterdir()) == []
    monkeypatch.undo()
    comm.Barrier()
    saver.begin(root, 2, make_slices(comm, 8), {})
    verify_checkpoint(comm, saver.drain())


def test_a_commit_that_hangs_is_left_alone(comm, root, saver, monkeypatch):
    """Whoever gives up must not delete what a commit may yet give its name."""
    true_commit = saver_module.commit

    def slow(*arguments):
        time.sleep(0.6)
        true_commit(*arguments)

    monkeypatch.setattr(saver_module, "commit", slow)
    monkeypatch.setattr(saver_module, "_PARTING_S", 0.1)
    saver.begin(root, 1, make_slices(comm, 7), {})
    wait_until(lambda: saver.advance() is None and saver._save.stage == "commit")
    saver.abandon()
    if comm.rank == 0:
        wait_until(lambda: (root / "LATEST").exists())  # the last thing that a commit does
    comm.Barrier()
    verify_checkpoint(comm, root / "step-000000001")
    assert sorted(path.name for path in root.iterdir()) == ["LATEST", "step-000000001"]
    comm.Barrier()
    saver._worker.wait()


def test_files_of_one_structure_differ_in_attributes_alone(comm, root, saver):
    for step, attributes in enumerate(
        ({"a": 1.5, "b": "long", "c": 2}, {"a": float("nan"), "b": "tail", "c": 3}, {"a": 2, "b": ""})
    ):
        saver.begin(root, step, make_slices(comm, step), attributes)
        path = saver.drain()
        verify_checkpoint(comm, path)
        waited = write_checkpoint(comm, root / "waited", step, make_slices(comm, step), attributes, "direct")
        (tensors, found), (expected, wanted) = content(path), content(waited)
        assert tensors == expected
        assert repr(found) == repr(wanted)


def test_files_with_hints(comm, root):
    """MPI-IO makes them."""
    hinted = BackgroundSaver(comm, Storage(("striping_factor=2",)))
    for step in (1, 2):
        hinted.begin(root, step, make_slices(comm, step), {"a": step})
        verify_checkpoint(comm, hinted.drain())
    hinted.close()
    if comm.rank == 0:
        shutil.rmtree(root)
        root.write_text("")
    comm.Barrier()
    hinted = BackgroundSaver(comm, Storage(("striping_factor=2",)))
    with pytest.raises(CheckpointError, match="cannot begin a checkpoint in"):
        hinted.begin(root, 3, make_slices(comm, 3), {})
    assert not hinted.in_flight
    hinted.close()
