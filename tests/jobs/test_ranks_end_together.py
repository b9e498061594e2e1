"""The test set-up itself: a rank that fails or hangs under mpirun ends the job soon, and says which rank it was."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Mpirun = Callable[..., "subprocess.CompletedProcess[str]"]

PROLOGUE = """
import time
import pytest
from lepton_mpi.runtime.mpi import MPI

def test_starts():
    assert MPI.COMM_WORLD.Get_size() == 2
"""


def run_tests(mpirun: Mpirun, folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a test file on two ranks under the project's conftest."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = timeout_s(seconds): limit\n")
    (folder / "test_body.py").write_text(PROLOGUE + textwrap.dedent(body))
    return mpirun(2, "-m", "pytest", "--with-mpi", "-q", "--color=no", "-p", "no:cacheprovider", folder, timeout_s=60, cwd=folder)


def test_failure_of_one_rank_does_not_leave_the_other_waiting(mpirun: Mpirun, tmp_path: Path) -> None:
    result = run_tests(
        mpirun,
        tmp_path,
        """
        def test_one_rank_fails():
            assert MPI.COMM_WORLD.Get_rank() == 0, "a reason"
            MPI.COMM_WORLD.Barrier()
        """,
    )
    assert result.returncode != 0
    assert "[rank 1] FAILED" in result.stderr
    assert "a reason" in result.stderr
    assert "other ranks did not end it" in result.stderr


def test_failure_of_all_ranks_lets_the_next_tests_run(mpirun: Mpirun, tmp_path: Path) -> None:
    result = run_tests(
        mpirun,
        tmp_path,
        """
        def test_all_ranks_fail():
            assert False

        def test_next():
            MPI.COMM_WORLD.Barrier()
        """,
    )
    assert result.returncode != 0
    assert "[rank 0] FAILED" in result.stderr
    assert "[rank 1] FAILED" in result.stderr
    assert result.stdout.count("1 failed, 2 passed") == 1  # the report of one rank only


def test_a_hang_ends_all_ranks_with_their_stacks(mpirun: Mpirun, tmp_path: Path) -> None:
    result = run_tests(
        mpirun,
        tmp_path,
        """
        @pytest.mark.timeout_s(3)
        def test_rank_1_waits_for_ever():
            if MPI.COMM_WORLD.Get_rank() == 1:
                MPI.COMM_WORLD.Recv(bytearray(1), source=0, tag=7)
        """,
    )
    assert result.returncode != 0
    assert "took longer than 3 s" in result.stderr
    assert "test_rank_1_waits_for_ever" in result.stderr


def test_mpirun_fixture_kills_what_overstays(mpirun: Mpirun) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"took longer than 2 s"):
        mpirun(2, "-c", "import time; time.sleep(60)", timeout_s=2)
