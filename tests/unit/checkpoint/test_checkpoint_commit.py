"""A checkpoint appears whole or not at all: the writer is killed at each of its file system calls."""

from __future__ import annotations

import logging
import os
import pathlib
import shutil

import numpy as np
import pytest

from lepton_mpi.checkpoint import commit
from lepton_mpi.checkpoint.commit import list_checkpoints, remove_unfinished
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.checkpoint.layout import MANIFEST_FILE, TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.errors import CheckpointError

SYSTEM_CALLS = [
    (os, "pwrite"),
    (os, "fsync"),
    (os, "open"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "mkdir"),
    (pathlib.Path, "write_text"),
    (pathlib.Path, "open"),
    (shutil, "rmtree"),
]


class Killed(BaseException):
    """The process died; nothing after it ran."""


class Countdown:
    """Dies just before the n-th watched call, and at every call after it, as a killed process makes none."""

    def __init__(self, monkeypatch, instant, error=None):
        self.left, self.error, self.failed = instant, error, False
        for owner, name in SYSTEM_CALLS:
            monkeypatch.setattr(owner, name, self.watch(getattr(owner, name)))

    def watch(self, call):
        def watched(*args, **kwargs):
            self.left -= 1
            if self.error is None and self.left < 0:
                raise Killed
            if self.left == -1:
                self.failed = True
                raise self.error
            return call(*args, **kwargs)

        return watched


def save(comm, root, step, value):
    return write_checkpoint(comm, root, step, [TensorSlice("/w", (9,), (0,), np.full(9, value))], {}, "direct")


def value_of(path):
    with CheckpointReader(path) as reader:
        return reader.read("/w", (0,), (1,))[0]


def count_calls(comm, root, step):
    with pytest.MonkeyPatch.context() as patch:
        countdown = Countdown(patch, 10**6)
        save(comm, root, step, 0.0)
    return 10**6 - countdown.left


@pytest.mark.parametrize("step", [5, 6], ids=["same_step", "next_step"])
def test_killed_at_any_instant_the_old_or_the_new_checkpoint_is_whole(comm, tmp_path, step):
    save(comm, tmp_path / "count", 5, 1.0)
    num_calls = count_calls(comm, tmp_path / "count", step)
    assert num_calls > 12
    values = []
    for instant in range(num_calls):
        root = tmp_path / f"{instant}"
        save(comm, root, 5, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            Countdown(patch, instant)
            with pytest.raises(Killed):
                save(comm, root, step, 2.0)
        found = find_resumable(comm, root, logging.getLogger(__name__))
        assert found is not None
        values.append(value_of(found))
        remove_unfinished(root)
        assert not [path for path in root.iterdir() if path.name.endswith(".tmp") and path.is_dir()]
        assert value_of(save(comm, root, step, 3.0)) == 3.0
        assert list_checkpoints(root)[0].name == f"step-{step:09d}"
        assert not list(root.glob("*.replaced"))
    assert values == sorted(values)
    assert set(values) == {1.0, 2.0}


@pytest.mark.parametrize("step", [5, 6], ids=["same_step", "next_step"])
def test_an_error_at_any_call_leaves_the_old_checkpoint_or_the_new_one(comm, tmp_path, step):
    save(comm, tmp_path / "count", 5, 1.0)
    for instant in range(count_calls(comm, tmp_path / "count", step)):
        root = tmp_path / f"{instant}"
        save(comm, root, 5, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            countdown = Countdown(patch, instant, OSError(28, "No space left on device"))
            try:
                written = save(comm, root, step, 2.0)
            except CheckpointError as error:
                written = None
                assert "No space left on device" in str(error)
            assert countdown.failed
        if written is None:
            assert [path.name for path in list_checkpoints(root)] == ["step-000000005"]
            assert value_of(root / "step-000000005") == 1.0
        else:
            assert value_of(written) == 2.0
        verify_checkpoint(comm, list_checkpoints(root)[0])


def test_only_committed_directories_are_listed_newest_first(comm, tmp_path):
    assert list_checkpoints(tmp_path / "nowhere") == []
    for step in (7, 1_234_567_890_1, 20):
        save(comm, tmp_path, step, 1.0)
    (tmp_path / "step-000000030").mkdir()
    (tmp_path / "step-000000020.replaced").mkdir()
    (tmp_path / "step-000000020.replaced" / MANIFEST_FILE).touch()
    (tmp_path / "step-9").mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-12345678901", "step-000000020", "step-000000020.replaced", "step-000000007"]
    assert (tmp_path / "LATEST").read_text() == "step-000000020\n"


def test_remove_unfinished_keeps_all_else(comm, tmp_path):
    assert remove_unfinished(tmp_path / "nowhere") == []
    kept = save(comm, tmp_path, 3, 1.0)
    left = commit.make_temporary(tmp_path, 4)
    (left / "data.h5").touch()
    (tmp_path / ".step-mine.tmp").mkdir()
    assert remove_unfinished(tmp_path) == [left]
    assert sorted(tmp_path.iterdir()) == sorted([kept, tmp_path / ".step-mine.tmp", tmp_path / "LATEST"])


def test_remove_unfinished_ends_a_replacement_that_a_kill_cut_short(comm, tmp_path):
    for step, others in ((3, ("step-000000003.replaced",)), (4, ())):
        path = save(comm, tmp_path, step, 1.0)
        for other in (*others, "step-000000005.replaced"):  # nothing has taken the place of step 5 yet
            if not (tmp_path / other).exists():
                shutil.copytree(path, tmp_path / other)
    assert len(remove_unfinished(tmp_path)) == 1
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-000000005.replaced", "step-000000004", "step-000000003"]


def test_failure_to_tidy_up_is_only_a_warning(comm, tmp_path, monkeypatch, caplog):
    (tmp_path / "LATEST").mkdir()
    with caplog.at_level(logging.WARNING):
        path = save(comm, tmp_path, 3, 1.0)
    assert "could not be tidied up" in caplog.text
    verify_checkpoint(comm, path)


def test_damaged_checkpoint_of_the_same_step_is_replaced(comm, tmp_path):
    (save(comm, tmp_path, 3, 1.0) / "data.h5").unlink()
    assert value_of(save(comm, tmp_path, 3, 2.0)) == 2.0
