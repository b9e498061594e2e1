"""One message for a job that failed, and ranks that notice when another one dies."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lepton_mpi.errors import ConfigError, LeptonError
from lepton_mpi.runtime.failure import FailureReport, PeerWatch, end_with_error, failure_path
from lepton_mpi.runtime.mpi import MPI, start_mpi


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def report_of(rank: int, logs: Path | None) -> FailureReport:
    report = FailureReport(rank, 8)
    if logs is not None:
        report.set_folder(logs.parent)
    return report


def test_the_first_claim_wins(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(3, logs).say("rank 3 fell over\n")
    report_of(1, logs).say("rank 1 noticed")
    assert capsys.readouterr().err == "rank 3 fell over\n"
    assert (logs / "failure.txt").read_text() == "rank 3 fell over\n"
    assert (logs / "rank-0003.log").read_text() == "rank 3 fell over\n"
    assert not (logs / "rank-0001.log").exists()


def test_a_message_goes_to_the_log_that_it_names(logs: Path) -> None:
    (logs / "rank-0002.log").write_text("earlier\n")
    report_of(0, logs).say("rank 2 died", rank=2)
    assert (logs / "rank-0002.log").read_text() == "earlier\nrank 2 died\n"


def test_an_earlier_failure_is_forgotten(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(0, logs).say("yesterday")
    failure_path(logs.parent).unlink()
    report_of(1, logs).say("today")
    assert capsys.readouterr().err == "yesterday\ntoday\n"


def test_without_a_folder_every_report_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(0, None).say("before there was a folder")
    report_of(0, tmp_path / "gone" / "logs").say("the folder is gone")
    assert capsys.readouterr().err == "before there was a folder\nthe folder is gone\n"


def test_descriptions(logs: Path) -> None:
    report = report_of(5, logs)
    host = os.uname().nodename
    text = report.describe(ConfigError("train.steps: no"))
    assert text == f"lepton_mpi: ConfigError: train.steps: no (rank 5 on {host})\nlog: {logs / 'rank-0005.log'}"
    report.step = 7
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        text = report.describe(error)
    assert text.startswith(f"lepton_mpi: rank 5 on {host}, step 7 failed:\nTraceback")
    assert "ZeroDivisionError: division by zero\nlog: " in text
    assert "log" not in FailureReport(0, 8).describe(ConfigError("no"))
    assert "ConfigError: no" in FailureReport(0, 8, traces=True).describe(ConfigError("no"))
    assert " failed:\n" in FailureReport(0, 8, traces=True).describe(ConfigError("no"))


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a"), 2), (LeptonError("b"), 1), (ValueError("c"), 1), (KeyboardInterrupt(), 130)],
    ids=["config", "lepton", "bug", "interrupt"],
)
def test_errors_of_all_ranks_end_in_order(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    comm = start_mpi().Dup()
    assert end_with_error(comm, error, FailureReport(0, 8)) == code
    assert "lepton_mpi" in capsys.readouterr().err
    comm.Free()


class TwoRanks:
    """What a watch asks of a communicator: this process and another one."""

    def __init__(self, other: int) -> None:
        self._other = other

    def allgather(self, own: tuple[int, int]) -> list[tuple[int, int]]:
        return [own, (own[0] + 1, self._other)]


def test_a_watch_that_is_stopped_lets_peers_end() -> None:
    peer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    before = len(os.listdir("/proc/self/fd"))
    with PeerWatch(TwoRanks(peer.pid), 0, FailureReport(0, 8)):  # type: ignore[arg-type]
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    peer.communicate(b"\n")


def test_a_watch_on_one_rank() -> None:
    start_mpi()
    with PeerWatch(MPI.COMM_SELF, 0, FailureReport(0, 8)):
        pass


def test_a_process_that_nobody_can_see_is_not_watched() -> None:
    with PeerWatch(TwoRanks(2**22 + 1), 0, FailureReport(0, 8)):  # type: ignore[arg-type]  # no such process number
        pass


_WATCHER = textwrap.dedent("""
    import os, subprocess, sys, time
    from pathlib import Path
    from lepton_mpi.runtime import failure
    failure._LAUNCHER_S = 0.05
    peer = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    class TwoRanks:
        def allgather(self, own):
            return [own, (own[0] + 1, peer.pid)]

    report = failure.FailureReport(4, 8)
    report.set_folder(Path(sys.argv[1]).parent)
    report.step = 12
    failure.PeerWatch(TwoRanks(), 4, report)
    print(peer.pid, flush=True)
    peer.kill()
    time.sleep(30)
    print("still here")
    """)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd on this system")
def test_a_dead_neighbour_ends_this_process_with_a_message(logs: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _WATCHER, logs], capture_output=True, text=True, timeout=25, check=False)
    peer = ended.stdout.strip()
    assert ended.returncode == 1
    assert f"lepton_mpi: rank 5 on {os.uname().nodename} (process {peer}) died at step 12 without a word" in ended.stderr
    assert f"log: {logs / 'rank-0005.log'}" in ended.stderr
    assert "rank 5" in (logs / "failure.txt").read_text()
    assert "rank 5" in (logs / "rank-0005.log").read_text()
