"""Which checkpoints stay, and that the others go in an order that a kill cannot turn against anybody."""

from __future__ import annotations

import shutil

import pytest

from lepton_mpi.checkpoint import retention
from lepton_mpi.checkpoint.commit import list_checkpoints, remove_unfinished
from lepton_mpi.checkpoint.layout import MANIFEST_FILE
from lepton_mpi.checkpoint.retention import Retention, remove_checkpoint, step_of


def make(root, *steps):
    for step in steps:
        path = root / f"step-{step:09d}"
        path.mkdir(parents=True)
        (path / MANIFEST_FILE).touch()
    return path


def surplus(rule, root, newest, distrusted=()):
    return sorted(step_of(path) for path in rule.surplus(root, newest, distrusted))


@pytest.mark.parametrize(
    ("rule", "goes"),
    [
        (Retention(), []),
        (Retention(keep_last=1), [10, 20, 30, 40]),
        (Retention(keep_last=3), [10, 20]),
        (Retention(keep_last=9), []),
        (Retention(keep_last=1, keep_every=20), [10, 30]),
        (Retention(keep_every=20), []),
    ],
)
def test_which_may_go(tmp_path, rule, goes):
    newest = make(tmp_path, 10, 20, 30, 40, 50)
    assert surplus(rule, tmp_path, newest) == goes


def test_later_steps_neither_count_nor_go(tmp_path):
    make(tmp_path, 10, 20, 90)
    assert surplus(Retention(keep_last=1), tmp_path, make(tmp_path, 30)) == [10, 20]


def test_damaged_ones_do_not_count(tmp_path):
    newest = make(tmp_path, 10, 20, 30, 40)
    assert surplus(Retention(keep_last=2), tmp_path, newest, {"step-000000030"}) == [10, 30]


def test_nothing_goes_before_a_newer_one_is_there(tmp_path):
    newest = make(tmp_path, 10, 20)
    assert surplus(Retention(keep_last=1), tmp_path, newest, {"step-000000020"}) == []


def test_no_checkpoint_has_no_step(tmp_path):
    with pytest.raises(ValueError, match="no directory of a checkpoint"):
        step_of(tmp_path / "best")


def test_a_kill_while_deleting_leaves_what_the_next_start_removes(tmp_path, monkeypatch):
    path = make(tmp_path, 10, 20)

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(path)
    monkeypatch.undo()
    assert [step_of(left) for left in list_checkpoints(tmp_path)] == [10]
    assert len(remove_unfinished(tmp_path)) == 1
    assert [left.name for left in tmp_path.iterdir()] == ["step-000000010"]


def test_one_that_is_gone_already_is_well(tmp_path):
    path = make(tmp_path, 10)
    remove_checkpoint(path)
    remove_checkpoint(path)
    shutil.rmtree(tmp_path)
