"""Whether somebody watches: a made-up process tree with real terminals, pipes and files in it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from lepton_mpi.monitor.terminal import find_terminal

RANK = 900


class Stage:
    """A /proc with a chain of processes, and terminals for them to write to."""

    def __init__(self, proc: Path, cleanup: ExitStack) -> None:
        self.proc = proc
        self._cleanup = cleanup

    def make_terminal(self, columns: int = 0) -> tuple[int, Path, TextIO]:
        """Return the reading end, the device, and a stream that writes to it."""
        leader, follower = pty.openpty()
        self._cleanup.callback(os.close, leader)
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        stream = self._cleanup.enter_context(os.fdopen(follower, "w"))
        return leader, Path(os.ttyname(follower)), stream

    def make_pipe(self) -> tuple[int, TextIO]:
        """Return the reading end and a stream that writes to the pipe."""
        reader, writer = os.pipe()
        self._cleanup.callback(os.close, reader)
        return reader, self._cleanup.enter_context(os.fdopen(writer, "w"))

    def add_chain(self, *names: str) -> list[int]:
        """Add a rank whose ancestors have these names, nearest first; return the ancestors' pids."""
        pids = [RANK + 1 + index for index in range(len(names))]
        for pid, parent, name in zip([RANK, *pids], [*pids, 1], ["python", *names], strict=True):
            (self.proc / str(pid) / "fd").mkdir(parents=True)
            (self.proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0 -1\n")
        return pids

    def open_file(self, pid: int, number: int, target: Path) -> None:
        (self.proc / str(pid) / "fd" / str(number)).symlink_to(target)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("TERM", "xterm")
    with ExitStack() as cleanup:
        yield Stage(tmp_path / "proc", cleanup)


def test_without_a_launcher_the_stream_itself_decides(stage: Stage, tmp_path: Path) -> None:
    stage.add_chain("bash (x) y", "sshd")
    _, _, stream = stage.make_terminal(columns=120)
    terminal = find_terminal(stream, stage.proc, RANK)
    assert terminal is not None and terminal.stream is stream and terminal.columns() == 120
    terminal.close()
    assert not stream.closed
    assert find_terminal(stage.make_pipe()[1], stage.proc, RANK) is None
    with (tmp_path / "log").open("w") as file:
        assert find_terminal(file, stage.proc, RANK) is None


def test_where_processes_cannot_be_seen_the_stream_itself_decides(stage: Stage) -> None:
    _, _, stream = stage.make_terminal()
    terminal = find_terminal(stream, stage.proc / "none", RANK)
    assert terminal is not None and terminal.columns() == 80  # a terminal that does not know its width


def test_streams_without_a_descriptor_have_no_terminal(stage: Stage) -> None:
    assert find_terminal(io.StringIO(), stage.proc, RANK) is None
    closed = stage.make_terminal()[2]
    closed.close()
    assert find_terminal(closed, stage.proc, RANK) is None


@pytest.mark.parametrize("names", [("prterun",), ("bash", "mpirun", "prterun", "bash")])
def test_under_open_mpi_the_terminal_of_the_launcher_is_drawn_on(stage: Stage, names: tuple[str, ...]) -> None:
    pids = stage.add_chain(*names)
    leader, device, _ = stage.make_terminal(columns=100)
    launcher = pids[next(index for index, name in enumerate(names) if name != "bash")]
    stage.open_file(launcher, 1, device)
    _, _, given_by_open_mpi = stage.make_terminal()
    terminal = find_terminal(given_by_open_mpi, stage.proc, RANK)
    assert terminal is not None and terminal.columns() == 100
    terminal.stream.write("\rstep 1")
    assert os.read(leader, 100) == b"\rstep 1"
    terminal.close()
    terminal.close()
    assert terminal.stream.closed and terminal.columns() == 80


@pytest.mark.parametrize("target", ["log", "/dev/null", "missing"])
def test_under_open_mpi_a_launcher_that_writes_elsewhere_has_no_terminal(stage: Stage, tmp_path: Path, target: str) -> None:
    (tmp_path / "log").touch()
    (pid,) = stage.add_chain("prterun")
    stage.open_file(pid, 1, tmp_path / target)
    assert find_terminal(stage.make_terminal()[2], stage.proc, RANK) is None


def test_under_mpich_the_pipe_must_lead_to_the_launcher(stage: Stage) -> None:
    proxy, launcher, _ = stage.add_chain("hydra_pmi_proxy", "mpiexec.hydra", "bash")
    _, device, _ = stage.make_terminal(columns=90)
    stage.open_file(launcher, 1, device)
    reader, stream = stage.make_pipe()
    assert find_terminal(stream, stage.proc, RANK) is None  # mpiexec -n 2 sh -c "python ... | tee log"
    stage.open_file(proxy, 6, Path(f"/proc/self/fd/{stage.make_pipe()[0]}"))
    stage.open_file(proxy, 7, Path("/nowhere"))
    assert find_terminal(stream, stage.proc, RANK) is None
    stage.open_file(proxy, 8, Path(f"/proc/self/fd/{reader}"))
    terminal = find_terminal(stream, stage.proc, RANK)
    assert terminal is not None and terminal.columns() == 90
    terminal.close()


def test_under_mpich_a_launcher_whose_files_cannot_be_seen_has_no_terminal(stage: Stage) -> None:
    proxy, launcher = stage.add_chain("hydra_pmi_proxy", "mpiexec.hydra")
    for pid in (proxy, launcher):
        (stage.proc / str(pid) / "fd").rmdir()
    assert find_terminal(stage.make_pipe()[1], stage.proc, RANK) is None


@pytest.mark.parametrize("daemon", ["prted", "orted", "hydra_pmi_proxy"])
def test_below_a_daemon_of_another_host_nobody_watches(stage: Stage, daemon: str) -> None:
    pids = stage.add_chain(daemon, "sshd")
    _, device, stream = stage.make_terminal()
    stage.open_file(pids[0], 1, device)
    assert find_terminal(stream, stage.proc, RANK) is None


def test_a_terminal_that_takes_nothing_does_not_stop_the_writer(stage: Stage) -> None:
    (pid,) = stage.add_chain("prterun")
    _, device, _ = stage.make_terminal()
    stage.open_file(pid, 1, device)
    terminal = find_terminal(stage.make_terminal()[2], stage.proc, RANK)
    assert terminal is not None
    for _ in range(1000):  # far more than a terminal's buffer, and nobody reads
        terminal.stream.write("x" * 1000)
        terminal.stream.flush()
    terminal.close()


def test_a_terminal_that_cannot_move_its_cursor_is_none(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.add_chain("bash")
    monkeypatch.setenv("TERM", "dumb")
    assert find_terminal(stage.make_terminal()[2], stage.proc, RANK) is None
