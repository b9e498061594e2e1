"""scripts/slurm/train.sbatch on a real Slurm: a private one of two nodes on this machine, where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm on this machine: {', '.join(MISSING)} not found"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a Slurm of its own"),
    pytest.mark.timeout_s(240),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port0} CPUs=8
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def wait_until(condition: str, command: list[str], env: dict[str, str], limit_s: float = 30) -> str:
    """Repeat a command until its output contains the condition; return the output."""
    deadline_s = time.monotonic() + limit_s
    while True:
        result = subprocess.run(command, env=env, capture_output=True, text=True)
        if condition in result.stdout:
            return result.stdout
        assert time.monotonic() < deadline_s, f"{command} did not show {condition!r}: {result.stdout}{result.stderr}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a Slurm with a munge of its own; return the environment to call its commands in."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    port, port0, port1 = free_ports(3)
    configuration = CONFIGURATION.format(folder=folder, host=socket.gethostname(), port=port, port0=port0, port1=port1)
    (folder / "slurm.conf").write_text(configuration)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n0"],
        ["slurmd", "-D", "-N", "n1"],
    ]
    daemons = []
    with (folder / "daemons.log").open("w") as log:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            time.sleep(0.5)
    try:
        wait_until("2 idle", ["sinfo", "--noheader", "--format=%D %t"], env)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=20)


def submit(env: dict[str, str], folder: Path, options: dict[str, object]) -> str:
    """Submit the script with 2 nodes of 2 tasks and options of the training; return the job's number."""
    sizes = ["--nodes=2", "--ntasks-per-node=2", "--time=5", f"--output={folder}/%j.txt", "--parsable"]
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = ["sbatch", *sizes, str(ROOT / "scripts" / "slurm" / "train.sbatch"), *arguments]
    variables = {**env, "VENV": str(Path(sys.executable).parent.parent)}
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def wait_for_end(env: dict[str, str], folder: Path, job: str) -> str:
    """Wait for the success of a job and return its output."""
    wait_until("JobState=COMPLETED", ["scontrol", "show", "job", job], env, limit_s=90)
    return (folder / f"{job}.txt").read_text()


def test_trains_on_two_nodes(slurm: dict[str, str], tmp_path: Path) -> None:
    output = wait_for_end(slurm, tmp_path, submit(slurm, tmp_path, {"run.dir": tmp_path / "run", "train.steps": 4}))
    assert "4 ranks" in output
    assert "finished" in output


def test_warning_before_the_time_limit_leaves_a_run_that_resumes(slurm: dict[str, str], tmp_path: Path) -> None:
    options = {"run.dir": tmp_path / "run", "train.steps": 1000000, "checkpoint.every_steps": 0, "run.progress_every_s": 0.2}
    outputs = []
    for _ in range(2):
        job = submit(slurm, tmp_path, options)
        wait_until("loss", ["cat", str(tmp_path / f"{job}.txt")], slurm, limit_s=90)
        subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)  # what Slurm sends before the limit
        outputs.append(wait_for_end(slurm, tmp_path, job))
    assert "resumed from" not in outputs[0]
    assert "resumed from" in outputs[1]
