"""The process that writes beside a rank: what it writes, what it finds damaged, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.checkpoint import background, write_process
from lepton_mpi.checkpoint.background import BackgroundWriter, background_obstacle
from lepton_mpi.checkpoint.layout import TensorInfo, cut_run, file_runs
from lepton_mpi.checkpoint.write_process import Writer, extent_nbytes, runs, write_fully
from lepton_mpi.errors import CheckpointError

# 3 runs of 8 bytes, 20 bytes apart, then 16 bytes in one run.
EXTENTS = [(0, 100, 8, [(3, 20)]), (24, 0, 16, [])]


@pytest.fixture
def writer():
    made = BackgroundWriter(40, EXTENTS, EXTENTS)
    made.reserve()
    made.memory[...] = np.arange(40)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(200))
    return path


def wait_for(writer):
    answer = writer.answer(30.0)
    assert answer is not None
    return answer


def has_ended(pid, within_s=10.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_it_writes_runs_where_they_belong_and_reads_them_back(writer, file):
    writer.write(file)
    digests = wait_for(writer)["digests"]
    memory, content = bytes(range(40)), file.read_bytes()
    assert digests == [zlib.crc32(memory[:24]), zlib.crc32(memory[24:])]
    assert content[:16] == memory[24:]
    assert [content[at : at + 8] for at in (100, 120, 140)] == [memory[at : at + 8] for at in (0, 8, 16)]
    assert not any(content[16:100] + content[108:120] + content[128:140] + content[148:])
    writer.check(file, digests)
    assert wait_for(writer) == {"done": "check"}
    file.write_bytes(content[:127] + b"\xff" + content[128:])
    writer.check(file, digests)
    assert wait_for(writer)["damaged"] == 0


def test_a_new_plan_goes_to_new_places(writer, file):
    writer.plan([(0, 50, 40, [])], [])
    writer.write(file)
    assert wait_for(writer)["digests"] == [zlib.crc32(bytes(range(40)))]
    assert file.read_bytes()[50:90] == bytes(range(40))


@pytest.mark.parametrize(("task", "message"), [("write", "No such file"), ("check", "No such file"), ("short", "ends at byte 10")])
def test_it_reports_what_fails_and_serves_on(writer, file, task, message):
    if task == "write":
        writer.write(file / "nowhere")
    elif task == "check":
        writer.check(file.with_name("nowhere"), [0, 0])
    else:
        file.write_bytes(bytes(10))
        writer.plan([], [(0, 0, 16, [])])
        writer.check(file, [0])
    if task == "write":
        message = "Not a directory"
    with pytest.raises(CheckpointError, match=message):
        wait_for(writer)
    writer.write(file)
    assert wait_for(writer)["done"] == "write"


def test_no_answer_yet(writer):
    assert writer.answer() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_whole_job_does_not_stop_it(writer, file, number):
    os.kill(writer.process_id, number)  # maybe before it runs at all
    writer.write(file)
    wait_for(writer)
    os.kill(writer.process_id, number)
    writer.write(file)
    wait_for(writer)


def test_its_death_is_noticed(writer, file):
    assert writer.is_alive
    os.kill(writer.process_id, signal.SIGKILL)
    with pytest.raises(CheckpointError, match=f"the process {writer.process_id} that writes checkpoints was killed by SIGKILL"):
        wait_for(writer)
    assert not writer.is_alive
    writer.write(file)
    with pytest.raises(CheckpointError, match="was killed by SIGKILL"):
        writer.answer()


def test_its_end_is_noticed_when_it_is_given_work(writer, file):
    os.kill(writer.process_id, signal.SIGKILL)
    assert has_ended(writer.process_id)
    writer.write(file)
    with pytest.raises(CheckpointError, match="was killed by SIGKILL"):
        wait_for(writer)


def test_closing_ends_it(writer):
    writer.close()
    assert has_ended(writer.process_id)
    writer.close()
    with pytest.raises(CheckpointError, match="ended"):
        writer.answer()


ORPHAN = """
import os, signal, sys
from lepton_mpi.checkpoint.background import BackgroundWriter
print(BackgroundWriter(8, [], []).process_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "kill" else os._exit(0)
"""


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_it_ends_with_its_rank(how):
    parent = subprocess.run([sys.executable, "-c", ORPHAN, how], capture_output=True, text=True, check=False, timeout=60)
    assert has_ended(int(parent.stdout))


def test_it_asks_nothing_of_the_package():
    text = "import sys; import runpy; runpy.run_path(sys.argv[1]); print(sorted(n for n in sys.modules if '.' not in n))"
    names = subprocess.run(
        [sys.executable, "-I", "-S", "-c", text, write_process.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert not {"numpy", "h5py", "mpi4py", "lepton_mpi"} & set(eval(names))


def test_no_memory_or_no_process_is_a_checkpoint_error(monkeypatch):
    writer = BackgroundWriter(2**20, [], [])

    def fail(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        with pytest.raises(CheckpointError, match=r"with 1 MiB of memory: .*Cannot allocate.*checkpoint.asynchronous = false"):
            writer.reserve()
    writer.reserve()  # it can be tried again
    monkeypatch.setattr(background.subprocess, "Popen", fail)
    with pytest.raises(CheckpointError, match="cannot set up a process"):
        BackgroundWriter(2**20, [], [])
    writer.close()


def test_obstacles(monkeypatch):
    assert background_obstacle() == ""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in background_obstacle()
    monkeypatch.setattr(sys, "executable", "")
    assert "interpreter" in background_obstacle()


class TestInThisProcess:
    """The parts of the script, where what fails can be made to fail."""

    def test_unknown_task(self):
        assert Writer(memoryview(b"")).answer({"do": "sing"}) == {"failed": "unknown task 'sing'"}

    def test_short_writes_are_completed(self, file, monkeypatch):
        true_pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, position: true_pwrite(fd, data[:3], position))
        descriptor = os.open(file, os.O_WRONLY)
        write_fully(descriptor, memoryview(b"0123456789"), 5)
        os.close(descriptor)
        assert file.read_bytes()[5:15] == b"0123456789"

    def test_a_write_that_takes_nothing(self, monkeypatch):
        monkeypatch.setattr(os, "pwrite", lambda fd, data, position: 0)
        with pytest.raises(OSError, match="took none of 4 bytes"):
            write_fully(0, memoryview(b"abcd"), 0)

    def test_runs_are_cut_into_pieces(self, monkeypatch):
        monkeypatch.setattr(write_process, "PIECE_NBYTES", 5)
        found = list(runs((7, 100, 8, [(2, 50)])))
        assert found == [(7, 100, 5), (12, 105, 3), (15, 150, 5), (20, 155, 3)]
        assert extent_nbytes((7, 100, 8, [(2, 50)])) == 16

    def test_a_rank_that_is_gone_is_noticed_between_pieces(self, monkeypatch):
        read, write = os.pipe()
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            write_process.check_parent()
            os.close(write)
            with pytest.raises(write_process.Orphaned):
                write_process.check_parent()

    def test_commands_that_wait_are_no_hang_up(self, monkeypatch):
        read, write = os.pipe()
        with os.fdopen(read) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            os.write(write, json.dumps({"do": "write"}).encode())
            write_process.check_parent()
            os.close(write)


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 4, 5), (2, 1, 3, 2)])
def test_runs_of_a_flat_buffer_as_blocks(shape):
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    for start in range(whole.size + 1):
        for stop in range(start, whole.size + 1):
            blocks = [
                whole[tuple(slice(s, s + n) for s, n in zip(*block, strict=True))].reshape(-1)
                for block in cut_run(shape, start, stop)
            ]
            assert np.array_equal(np.concatenate([*blocks, []]), np.arange(start, stop))
            assert len(blocks) <= max(2 * len(shape) - 1, 1)


def test_runs_of_a_block_in_its_tensor():
    info = TensorInfo((4, 6, 5), np.dtype(np.float32))
    assert file_runs((1, 2, 0), (2, 3, 5), info) == (160, 60, [(2, 120)])
    assert file_runs((0, 0, 1), (4, 6, 2), info) == (4, 8, [(4, 120), (6, 20)])
    assert file_runs((0, 0, 0), (4, 6, 5), info) == (0, 480, [])
    assert file_runs((), (), TensorInfo((), np.dtype(np.float64))) == (0, 8, [])
