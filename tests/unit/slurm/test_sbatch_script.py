"""scripts/slurm/train.sbatch, run by bash with a stand-in for the launcher: command line, signal, status, requeue."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "slurm" / "train.sbatch"

# Writes what it was called with, then ends by itself (ENDS=1) or on a signal, with a status of its own for each signal.
LAUNCHER = """#!/bin/bash
trap 'sleep 0.3; exit 40' USR1
trap 'sleep 0.3; exit 41' TERM
echo "$(basename "$0") $* threads=$OMP_NUM_THREADS" > "$REPORT"
[ -n "$ENDS" ] && exit 7
for i in $(seq 200); do sleep 0.1; done
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """Make an environment with stand-ins of mpirun, srun and scontrol; return the variables of a job in it."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("mpirun", "srun"):
        (folder / name).write_text(LAUNCHER)
    (folder / "scontrol").write_text('#!/bin/bash\necho "$*" > "$REPORT.scontrol"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_NTASKS": "6", "SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_ID": "17"}
    return {**os.environ, **job, "VENV": str(tmp_path / "venv"), "REPORT": str(tmp_path / "report"), "ENDS": ""}


def run_and_signal(variables: dict[str, str], *arguments: str) -> int:
    """Start the script, send it TERM once the launcher runs, and return its exit status."""
    process = subprocess.Popen(["bash", str(SCRIPT), *arguments], env=variables)
    report = Path(variables["REPORT"])
    deadline_s = time.monotonic() + 20
    while not (report.exists() and report.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=20)


@pytest.mark.parametrize(
    ("launch", "start"),
    [
        ("mpirun", "mpirun -n 6 python -m lepton_mpi.train"),
        ("srun", "srun --mpi=pmix --ntasks=6 --cpus-per-task=3 --kill-on-bad-exit=1 python -m lepton_mpi.train"),
    ],
)
def test_starts_all_tasks_and_passes_arguments_and_status_on(site: dict[str, str], launch: str, start: str) -> None:
    variables = {**site, "LAUNCH": launch, "ENDS": "1"}
    result = subprocess.run(["bash", str(SCRIPT), "--run.dir", "a b"], env=variables, timeout=20)
    assert result.returncode == 7
    assert Path(site["REPORT"]).read_text() == f"{start} --run.threads 3 --run.progress lines --run.dir a b threads=3\n"


@pytest.mark.parametrize(("launch", "status"), [("mpirun", 40), ("srun", 41)])
def test_warning_of_the_time_limit_reaches_the_ranks_and_is_waited_for(site: dict[str, str], launch: str, status: int) -> None:
    assert run_and_signal({**site, "LAUNCH": launch}) == status  # mpirun hands on USR1, srun TERM
    assert not Path(site["REPORT"] + ".scontrol").exists()


def test_requeues_when_asked(site: dict[str, str]) -> None:
    run_and_signal({**site, "REQUEUE": "1"})
    assert Path(site["REPORT"] + ".scontrol").read_text() == "requeue 17\n"


def test_refuses_an_unknown_launcher(site: dict[str, str]) -> None:
    result = subprocess.run(["bash", str(SCRIPT)], env={**site, "LAUNCH": "ssh"}, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2
    assert "LAUNCH must be mpirun or srun, not 'ssh'" in result.stderr
