"""What a run does about its checkpoints: when it saves, what a failed save costs, and what it keeps."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_runs import configure, made_splits, on_grid, running

from lepton_mpi.checkpoint import drivers
from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.errors import CheckpointError, SaveError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train import saving
from lepton_mpi.train.loop import Outcome, Watcher, train
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

pytestmark = pytest.mark.mpi
DRIVERS = ["direct", pytest.param("mpio", marks=pytest.mark.skipif(bool(drivers.mpio_obstacle()), reason="no parallel HDF5"))]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


class Diary(Watcher):
    """Notes what it is told, and does something after a step or before a save."""

    def __init__(self, after_step: Callable[[int], None] | None = None, before: Callable[[Path], None] | None = None) -> None:
        self.done: list[str] = []
        self.failed: list[str] = []
        self.digest = ""
        self._after_step, self._before = after_step, before

    def step_done(self, state: TrainState, metrics: StepMetrics, samples_per_second: float) -> None:
        if self._after_step is not None:
            self._after_step(state.step)

    def before_checkpoint(self, root: Path) -> None:
        if self._before is not None:
            self._before(root)

    def checkpoint_done(self, path: Path) -> None:
        self.done.append(path.name)

    def checkpoint_failed(self, message: str) -> None:
        self.failed.append(message)


def run_training(comm: MPI.Intracomm, root: Path, diary: Diary, best: Path | None = None, **checkpoint: Any) -> Outcome:
    """Train 12 steps on a grid that divides everything it can."""
    shape = GridShape(comm.size // 2, 2, 1) if comm.size % 2 == 0 else GridShape(comm.size, 1, 1)
    config = on_grid(configure(checkpoint={"every_steps": 3, **checkpoint}), shape)
    with running(comm, config, made_splits()) as run:
        try:
            outcome = train(run, TrainState(), root, lambda: False, diary, best)
        finally:
            diary.digest = run.network.weights.sha256()
    comm.Barrier()
    return outcome


def steps_in(root: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(root)]


@contextmanager
def small_disk(comm: MPI.Intracomm, folder: Path) -> Iterator[Callable[[str], None]]:
    """Mount a small file system, and yield what mounts it anew with other options, on rank 0."""

    def mount(options: str) -> None:
        if comm.rank == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "lepton_test", str(folder)], check=True)

    error = None
    if comm.rank == 0:
        folder.mkdir()
        try:
            mount("size=4m")
        except subprocess.CalledProcessError as found:
            error = str(found)
    error = comm.bcast(error)
    if error:
        pytest.skip(f"mounting a tmpfs is not allowed here: {error}")
    try:
        yield mount
    finally:
        comm.Barrier()
        if comm.rank == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_both_ways_save_the_same_at_the_same_steps(comm: MPI.Intracomm, folder: Path, asynchronous: bool) -> None:
    diary = Diary()
    run_training(comm, folder / "c", diary, asynchronous=asynchronous, keep_last=0, driver="direct")
    assert diary.done == [f"step-{step:09d}" for step in (3, 6, 9, 12)]
    assert diary.failed == []
    for path in list_checkpoints(folder / "c"):
        verify_checkpoint(comm, path)


@pytest.mark.parametrize(
    ("rule", "kept"), [({"keep_last": 2}, [12, 9]), ({"keep_last": 1, "keep_every": 6}, [12, 6]), ({"keep_last": 0}, [12, 9, 6, 3])]
)
def test_older_checkpoints_go(comm: MPI.Intracomm, folder: Path, rule: dict[str, int], kept: list[int]) -> None:
    run_training(comm, folder / "c", Diary(), **rule)
    assert steps_in(folder / "c") == kept
    assert len(list((folder / "c").iterdir())) == len(kept) + 1  # and the hint


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_best_model_is_kept_apart(comm: MPI.Intracomm, folder: Path, asynchronous: bool) -> None:
    diary = Diary()
    outcome = run_training(
        comm, folder / "c", diary, folder / "best", keep_best=True, asynchronous=asynchronous, driver="direct", keep_last=1
    )
    (found,) = list_checkpoints(folder / "best" / "checkpoints")
    verify_checkpoint(comm, found)
    assert (folder / "best" / "config.toml").is_file()
    assert outcome.state.stale > 0 or steps_in(folder / "best" / "checkpoints") == [12]
    assert steps_in(folder / "c") == [12]


def fail_at(comm: MPI.Intracomm, steps: set[int]) -> Diary:
    """Return a diary whose run cannot begin some of its saves."""
    diary = Diary()
    step = [0]
    diary._after_step = lambda done: step.__setitem__(0, done)

    def before(root: Path) -> None:
        if step[0] in steps:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    diary._before = before
    return diary


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_reported_and_tried_again(comm: MPI.Intracomm, folder: Path, asynchronous: bool) -> None:
    undisturbed = Diary()
    run_training(comm, folder / "u", undisturbed)
    diary = fail_at(comm, {3, 4})
    run_training(comm, folder / "c", diary, asynchronous=asynchronous, driver="direct", keep_last=0)
    assert len(diary.failed) == 2
    assert "the checkpoint of step 3 could not be saved" in diary.failed[0]
    assert "Disk quota exceeded" in diary.failed[0]
    assert diary.failed[0].endswith("training goes on, the next try is at step 4")
    assert diary.failed[1].endswith("training goes on, the next try is at step 6")  # twice as far
    assert steps_in(folder / "c") == [12, 9, 6]
    assert diary.digest == undisturbed.digest  # nothing of it touched the weights


def test_required_checkpoints_end_the_run(comm: MPI.Intracomm, folder: Path) -> None:
    with pytest.raises(SaveError, match=r"step 3 could not be saved.*quota.*checkpoint.required ends the run") as caught:
        run_training(comm, folder / "c", fail_at(comm, {3}), required=True)
    assert caught.value.exit_code == 1


def test_a_run_whose_end_cannot_be_saved_fails(comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_FIRST_PAUSE_S", 0.01)
    diary = fail_at(comm, {12})
    message = r"the last checkpoint of the run, of step 12, could not be saved in 3 tries: .*quota.*; the newest one is of step 9"
    with pytest.raises(SaveError, match=message) as caught:
        run_training(comm, folder / "c", diary)
    assert caught.value.exit_code == 1
    assert len(diary.failed) == 4  # when it was due, and three tries
    assert steps_in(folder / "c") == [9, 6, 3]
    with pytest.raises(SaveError, match="there is none"):
        run_training(comm, folder / "n", fail_at(comm, {12}), every_steps=0)


def test_the_end_is_tried_again(comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_FIRST_PAUSE_S", 0.01)
    tries = []

    def before(root: Path) -> None:
        tries.append(root)
        if len(tries) < 3:
            raise CheckpointError("not now")

    run_training(comm, folder / "c", Diary(before=before), every_steps=0)
    assert steps_in(folder / "c") == [12]
    assert len(tries) == (3 if comm.rank == 0 else 0)


@pytest.mark.parametrize("when", [3, 4])
def test_a_folder_deleted_while_training(comm: MPI.Intracomm, folder: Path, when: int) -> None:
    def delete(step: int) -> None:
        if step == when and comm.rank == 0:
            shutil.rmtree(folder / "c", ignore_errors=True)

    diary = Diary(delete)
    run_training(comm, folder / "c", diary)
    assert steps_in(folder / "c")[:2] == [12, 9]
    assert len(diary.failed) <= 1  # of what was in flight
    verify_checkpoint(comm, list_checkpoints(folder / "c")[0])


@ROOT_ONLY
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_folder_that_becomes_read_only_for_a_while(comm: MPI.Intracomm, folder: Path, asynchronous: bool) -> None:
    with small_disk(comm, folder / "disk") as mount:

        def change(step: int) -> None:
            if step in (5, 7):
                mount("remount,ro" if step == 5 else "remount,rw")

        diary = Diary(change)
        run_training(comm, folder / "disk" / "c", diary, asynchronous=asynchronous, driver="direct", every_steps=2)
        assert any("Read-only file system" in message for message in diary.failed)
        assert steps_in(folder / "disk" / "c")[0] == 12
        verify_checkpoint(comm, list_checkpoints(folder / "disk" / "c")[0])


@ROOT_ONLY
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_is_full_for_a_while(comm: MPI.Intracomm, folder: Path, asynchronous: bool) -> None:
    with small_disk(comm, folder / "disk"):
        ballast = folder / "disk" / "ballast"

        def change(step: int) -> None:
            if comm.rank == 0 and step == 5:
                with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                    while True:
                        file.write(bytes(2**14))
            if comm.rank == 0 and step == 8:
                ballast.unlink()

        diary = Diary(change)
        run_training(comm, folder / "disk" / "c", diary, asynchronous=asynchronous, driver="direct")
        assert any("No space left" in message for message in diary.failed)
        assert steps_in(folder / "disk" / "c")[0] == 12
        for path in list_checkpoints(folder / "disk" / "c"):
            verify_checkpoint(comm, path)


def test_malformed_hints_are_refused_at_once(comm: MPI.Intracomm, folder: Path) -> None:
    for hint in ("striping_factor", "=3", "name=", "x" * 300 + "=1"):
        with pytest.raises(CheckpointError, match=r"checkpoint\.hints: expected"):
            run_training(comm, folder / "c", Diary(), hints=(hint,))


@pytest.mark.parametrize(
    "driver", ["direct", pytest.param("mpio", marks=pytest.mark.skipif(bool(drivers.mpio_obstacle()), reason="-"))]
)
def test_hints_and_alignment_change_no_content(comm: MPI.Intracomm, folder: Path, driver: str) -> None:
    for name, options in (("plain", {}), ("hinted", {"hints": ("striping_factor=4", "cb_nodes=1"), "alignment": 2**16})):
        run_training(comm, folder / name, Diary(), driver=driver, asynchronous=False, every_steps=0, **options)
        verify_checkpoint(comm, list_checkpoints(folder / name)[0])


def test_mpio_waits(comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "BackgroundSaver", None)  # nobody may ask for one
    if not drivers.mpio_obstacle():
        run_training(comm, folder / "c", Diary(), driver="mpio", asynchronous=True)
        assert steps_in(folder / "c") == [12, 9, 6]
    monkeypatch.setattr(saving, "background_obstacle", lambda: "no such thing here")
    run_training(comm, folder / "o", Diary(), asynchronous=True, driver="direct")
    assert steps_in(folder / "o") == [12, 9, 6]


def test_a_tidying_that_fails_is_only_a_warning(comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(saving, "remove_checkpoint", fail)
    diary = Diary()
    run_training(comm, folder / "c", diary, keep_last=1)
    assert steps_in(folder / "c") == [12, 9, 6, 3]
    assert diary.failed == []


def test_older_checkpoints_go_without_a_thread_too(comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(saving.Worker):
        def start(self, work: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(saving, "Worker", NoThread)
    run_training(comm, folder / "c", Diary(), keep_last=1)
    assert steps_in(folder / "c") == [12]


def test_nobody_waits_for_a_slow_deletion_but_the_next_save(
    comm: MPI.Intracomm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_remove, events = saving.remove_checkpoint, []

    def remove(path: Path) -> None:
        time.sleep(0.3)
        true_remove(path)
        events.append(f"removed {path.name}")

    monkeypatch.setattr(saving, "remove_checkpoint", remove)
    diary = Diary(lambda step: events.append(f"step {step}"), lambda root: events.append("begin"))
    run_training(comm, folder / "c", diary, keep_last=1)
    assert steps_in(folder / "c") == [12]
    if comm.rank == 0:
        assert [event for event in events if "removed" in event] == [f"removed step-{step:09d}" for step in (3, 6, 9)]
        removed, begun = events.index("removed step-000000003"), [i for i, event in enumerate(events) if event == "begin"]
        assert begun[1] < removed < begun[2]  # of step 3 after the save of step 6, before that of step 9 began
