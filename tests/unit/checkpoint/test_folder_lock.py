"""One job in a run folder: the second is refused with the first one named, and a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from lepton_mpi.checkpoint import folder_lock
from lepton_mpi.checkpoint.folder_lock import LOCK_FILE, FolderLock, Holder
from lepton_mpi.errors import CheckpointError, ConfigError

HOLD = "import sys, pathlib\nfrom lepton_mpi.checkpoint.folder_lock import FolderLock\n"
HOLD += "lock = FolderLock(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()\n"


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds the folder."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def record(folder, **changes):
    """Leave the record of a holder that is not there any more."""
    mine = Holder(platform.node(), folder_lock._boot_id(), 1, 1, "", "2026-01-01T00:00:00Z")
    (folder / LOCK_FILE).write_text(json.dumps(asdict(replace(mine, **changes))))


def without_locks(monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)


def hurry(monkeypatch):
    monkeypatch.setattr(folder_lock, "SILENCE_S", 0.5)
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(folder_lock, "_LOOK_S", 0.05)


def test_the_second_is_refused_with_the_first_one_named(tmp_path, holder):
    name = re.escape(f"process {holder.pid} on {platform.node()}, job 4711, since 20")
    with pytest.raises(ConfigError, match=rf"run.dir: .* is in use by {name}.*name another run.dir"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("locks", [True, False])
def test_a_killed_holder_is_in_nobodys_way(tmp_path, holder, monkeypatch, locks):
    if not locks:
        without_locks(monkeypatch)
        with pytest.raises(ConfigError, match=f"process {holder.pid}"):
            FolderLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).read_bytes() == b""


def test_a_process_number_that_came_again_holds_nothing(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    record(tmp_path, pid=os.getpid(), started=12)
    FolderLock(tmp_path).release()


def test_another_hosts_holder_that_is_silent_is_dead(tmp_path, monkeypatch):
    hurry(monkeypatch)
    record(tmp_path, host="elsewhere")
    FolderLock(tmp_path).release()


def test_another_hosts_holder_that_counts_on_lives(tmp_path, monkeypatch):
    hurry(monkeypatch)
    without_locks(monkeypatch)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    with FolderLock(tmp_path):
        monkeypatch.setattr(platform, "node", lambda: "here")
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on elsewhere"):
            FolderLock(tmp_path)


def test_another_hosts_holder_that_ends_meanwhile(tmp_path, monkeypatch):
    hurry(monkeypatch)
    record(tmp_path, host="elsewhere")
    monkeypatch.setattr(folder_lock.time, "sleep", lambda duration_s: (tmp_path / LOCK_FILE).write_text(""))
    FolderLock(tmp_path).release()


def test_a_holder_without_a_record_is_just_starting(tmp_path, holder):
    os.truncate(tmp_path / LOCK_FILE, 0)
    with pytest.raises(ConfigError, match="another job, which is just starting"):
        FolderLock(tmp_path)


def test_other_errors_of_locks_are_not_hidden(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        FolderLock(tmp_path)


def test_a_deleted_folder_is_taken_anew(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FolderLock(folder) as lock:
        lock.renew()
        shutil.rmtree(folder)
        with pytest.raises(FileNotFoundError):
            lock.renew()
        folder.mkdir()
        lock.renew()
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            FolderLock(folder)


def test_a_folder_taken_over_is_not_written_any_more(tmp_path):
    with FolderLock(tmp_path) as lock:
        record(tmp_path, host="elsewhere", pid=5)
        with pytest.raises(CheckpointError, match="taken over by process 5 on elsewhere"):
            lock.renew()


def test_a_folder_made_anew_by_another_job(tmp_path):
    with FolderLock(tmp_path) as lock:
        (tmp_path / LOCK_FILE).unlink()
        with FolderLock(tmp_path), pytest.raises(CheckpointError, match="is in use by"):
            lock.renew()
        lock.release()
        lock.release()
