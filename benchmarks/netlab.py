"""The compressed all-reduce between hosts with slow links: network namespaces of this machine, joined by limited veth pairs.

    python benchmarks/netlab.py                                  # 2, 3 and 4 hosts at 1 Gbit/s, 100 MB, all codecs
    python benchmarks/netlab.py --hosts 2 --ranks-per-host 2 --rate 100mbit --codecs exact int8 --sizes 1MB 100MB
    python benchmarks/netlab.py --hosts 2 -- python -m lepton_mpi.train --reduce.mode int8    # any other program

Each host is a namespace with a host name of its own; ranks of different hosts share no memory, and meet at a bridge in
a further namespace. Both directions of every link are limited by a token bucket (tc tbf). Beside each ratio to
MPI_Allreduce stands the fraction of the raw link, as a plain socket fills it, that the transfer filled. Traffic runs
in these namespaces only, and they are removed at the end, also after Ctrl-C. Needs root, Linux, iproute2 with tc, and
Open MPI 5, whose daemons an agent script starts in the namespaces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

BIN = Path(sys.executable).parent
NETWORK = "10.78.0.0/24"
# Sends for so many seconds and prints bytes per second; the receiver ends with the sender.
SENDER = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 5201)); block = bytes(1 << 18); sent = 0; start = time.monotonic()
while time.monotonic() - start < float(sys.argv[2]):
    s.sendall(block); sent += len(block)
s.shutdown(socket.SHUT_WR); s.recv(1)
print(sent / (time.monotonic() - start))
"""
RECEIVER = """
import socket
l = socket.create_server(("", 5201)); print("ready", flush=True); s = l.accept()[0]; buffer = bytearray(1 << 20)
while s.recv_into(buffer): pass
s.sendall(b"1")
"""


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Lab:
    """Hosts on a switch.

    Attributes:
        names: their namespaces.
        addresses: their addresses.
        agent: script that starts Open MPI's daemons in them.
    """

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    agent: Path

    def command(self, ranks_per_host: int) -> list[str]:
        """Return the start of an mpirun command over all hosts."""
        first = ["ip", "netns", "exec", self.names[0], "unshare", "--uts", "bash", "-c", 'hostname host-1; exec "$@"', "mpirun"]
        places = ",".join(f"{address}:{ranks_per_host}" for address in self.addresses)
        return [
            *(*first, str(BIN / "mpirun.openmpi"), "--prtemca", "plm_ssh_agent", str(self.agent)),
            *("--prtemca", "prte_if_include", NETWORK, "--mca", "btl_tcp_if_include", NETWORK, "--mca", "pml", "ob1"),
            *("--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--host", places),
            *("-n", str(ranks_per_host * len(self.names))),
        ]


@contextlib.contextmanager
def make_lab(hosts: int, rate: str) -> Iterator[Lab]:
    """Make hosts on a switch with links of a rate; removes all of it, and whatever still runs there, at the end."""
    stem = f"netlab-{os.getpid()}"
    switch, names = f"{stem}-switch", tuple(f"{stem}-{i}" for i in range(1, hosts + 1))
    addresses = tuple(f"10.78.0.{i}" for i in range(1, hosts + 1))
    folder = Path(tempfile.mkdtemp(prefix=stem))
    limit = ("root", "tbf", "rate", rate, "burst", "128kb", "latency", "100ms")
    try:
        for name in (switch, *names):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, (name, address) in enumerate(zip(names, addresses, strict=True)):
            run("ip", "-n", name, "link", "add", "veth", "type", "veth", "peer", "name", f"port{i}", "netns", switch)
            run("ip", "-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "veth")
            run("ip", "-n", name, "link", "set", "veth", "up")
            run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "veth", *limit)
            run("ip", "netns", "exec", switch, "tc", "qdisc", "add", "dev", f"port{i}", *limit)
        yield Lab(names, addresses, write_agent(folder / "agent", names, addresses))
    finally:
        for name in (*names, switch):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def write_agent(path: Path, names: Sequence[str], addresses: Sequence[str]) -> Path:
    """Write what Open MPI calls as it would call ssh: host, then the command."""
    cases = " ".join(f"{address}) ns={name} ;;" for address, name in zip(addresses, names, strict=True))
    path.write_text(
        f"#!/bin/bash\ncase $1 in {cases} esac\nhost=host-${{1##*.}}; shift\n"
        'exec ip netns exec $ns unshare --uts bash -c "hostname $host; $*"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def measure_raw(lab: Lab, seconds: float) -> float:
    """Return what a socket sends from the second host to the first, bytes a second."""
    receiver = ["ip", "netns", "exec", lab.names[0], sys.executable, "-c", RECEIVER]
    sender = ["ip", "netns", "exec", lab.names[1], sys.executable, "-c", SENDER, lab.addresses[0], str(seconds)]
    with subprocess.Popen(receiver, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        listening.stdout.readline()
        done = subprocess.run(sender, check=True, capture_output=True, text=True)
    return float(done.stdout)


def environment(mca: Sequence[str]) -> dict[str, str]:
    return {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **{f"OMPI_MCA_{name}": value for name, _, value in (word.partition("=") for word in mca)},
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def bench(lab: Lab, raw: float, arguments: argparse.Namespace) -> dict[str, object]:
    """Run `bench allreduce` over the hosts and add the fractions of the raw link."""
    words = ["-m", "lepton_mpi", "bench", "allreduce", "--json", "--seconds", arguments.seconds]
    words += ["--sizes", *arguments.sizes, "--codecs", *arguments.codecs]
    words += ["--chunk-mib", arguments.chunk_mib, "--depth", arguments.depth]
    command = [*lab.command(arguments.ranks_per_host), sys.executable, *map(str, words)]
    job = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment(arguments.mca))
    if job.returncode != 0:
        raise SystemExit(f"netlab: the benchmark failed with code {job.returncode}")
    result = json.loads(job.stdout)
    hosts = len(lab.names)
    for entry in result["results"]:
        entry["raw_fraction"] = entry["node_nbytes"] / entry["seconds"] / raw
        # The least that any exact all-reduce between hosts must send.
        entry["plain_raw_fraction"] = 2 * entry["nbytes"] * (hosts - 1) / hosts / entry["plain_seconds"] / raw
    return {"hosts": hosts, "ranks_per_host": arguments.ranks_per_host, "rate": arguments.rate, "raw_mbs": raw / 1e6, **result}


def show(result: dict[str, object]) -> None:
    """Print a table."""
    print(
        f"{result['hosts']} hosts, {result['ranks_per_host']} ranks each, {result['rate']}: raw link {result['raw_mbs']:.1f} MB/s\n"
        f"{'codec':<8}{'MB':>9}{'ms':>10}{'plain ms':>10}{'ratio':>8}{'raw filled':>12}{'by plain':>10}{'sent, MB':>10}"
    )
    entries = result["results"]
    assert isinstance(entries, list)
    for e in entries:
        print(
            f"{e['codec']:<8}{e['nbytes'] / 1e6:>9g}{1e3 * e['seconds']:>10.1f}{1e3 * e['plain_seconds']:>10.1f}{e['ratio']:>8.2f}"
            f"{e['raw_fraction']:>12.0%}{e['plain_raw_fraction']:>10.0%}{e['node_nbytes'] / 1e6:>10.2f}"
        )
    sys.stdout.flush()


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 3, 4], help="numbers of hosts to measure with (2 3 4)")
    parser.add_argument("--ranks-per-host", type=int, default=1, help="ranks on each host (1)")
    parser.add_argument("--rate", default="1gbit", help="of each link and direction, as tc has it (1gbit)")
    parser.add_argument("--sizes", nargs="+", default=["100MB"], help="sizes of the array (100MB)")
    parser.add_argument("--codecs", nargs="+", default=["exact", "bf16", "int8", "int4", "sign1"])
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each size (10)")
    parser.add_argument("--chunk-mib", type=float, default=0.0, help="chunk of the pipeline; 0: the default")
    parser.add_argument("--depth", type=int, default=0, help="chunks on their way at a time; 0: the default")
    parser.add_argument("--mca", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of Open MPI")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("program", nargs="*", help="run this on all ranks instead of the benchmark")
    return parser.parse_args()


def stop(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def end_in_order() -> None:
    """Let this process unwind when it is told to end, so that the hosts are removed."""
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, stop)


def main() -> None:
    arguments = read_arguments()
    end_in_order()
    results = []
    for hosts in arguments.hosts:
        with make_lab(hosts, arguments.rate) as lab:
            if arguments.program:
                command = [*lab.command(arguments.ranks_per_host), *arguments.program]
                subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment(arguments.mca))
                continue
            result = bench(lab, measure_raw(lab, 2.0), arguments)
            results.append(result)
            if not arguments.json:
                show(result)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
