"""Checkpoints against a plain sequential write with fsync of as many bytes in the same folder.

    python benchmarks/checkpoint_io.py                        # starts itself on 1, 2 and 4 ranks, prints one JSON list
    mpirun -n 2 python benchmarks/checkpoint_io.py --mib 512  # on these ranks, prints one JSON object

One round writes: a plain file by rank 0; a checkpoint by each driver, from the first digest until it survives a crash, read back
and committed; and one in the background, while the ranks work on. They take turns in an order that changes from round to round, so
that a drift of the machine meets all alike. Times are those of the slowest rank; ratios are medians over rounds of times of the
same round. What an asynchronous save costs is the time that its calls hold training up; its first, which starts a process, is
apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lepton_mpi.runtime.mpi import MPI, launched_ranks, mpi_library, start_mpi
from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi.checkpoint.background import background_obstacle  # noqa: E402
from lepton_mpi.checkpoint.drivers import mpio_obstacle  # noqa: E402
from lepton_mpi.checkpoint.layout import TensorSlice  # noqa: E402
from lepton_mpi.checkpoint.saver import BackgroundSaver  # noqa: E402
from lepton_mpi.checkpoint.writer import write_checkpoint  # noqa: E402
from lepton_mpi.runtime.ranges import split_range  # noqa: E402

PLAIN_PIECE_NBYTES = 8 * 2**20
COLUMNS = 1024
SHARES = (0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05)  # of the state, as layers of unlike size have them
STEP_S = 0.02  # how long a step of the work beside an asynchronous save takes


def make_state(comm: MPI.Intracomm, nbytes: int) -> list[TensorSlice]:
    """Return this rank's rows of tensors that have so many bytes over all ranks: weights, and a moment of each."""
    random = np.random.default_rng(comm.rank)
    slices = []
    for index, share in enumerate(SHARES):
        rows = max(1, round(nbytes * share / 2 / (COLUMNS * 4)))
        start, stop = split_range(rows, comm.size, comm.rank)
        for kind in ("/param", "/opt/moment"):
            array = random.random((stop - start, COLUMNS), np.float32)
            slices.append(TensorSlice(f"{kind}/layers.{index}.weight", (rows, COLUMNS), (start, 0), array))
    return slices


class Side:
    """The ways to write one state, each timed alike."""

    def __init__(self, comm: MPI.Intracomm, root: Path, slices: list[TensorSlice]) -> None:
        self.comm, self.root, self.slices = comm, root, slices
        self.nbytes = comm.allreduce(sum(part.array.nbytes for part in slices))
        self.plain = np.random.default_rng(1).random(self.nbytes // 4, np.float32) if comm.rank == 0 else None
        self.saver = BackgroundSaver(comm)
        self.step = 0
        self.stalls: list[float] = []
        self.disk_nbytes: list[int] = []

    def timed(self, write: Callable[[], object]) -> float:
        """Return how long the slowest rank takes, from a moment when nothing else is to be written."""
        if self.comm.rank == 0:
            os.sync()
        self.comm.Barrier()
        start_s = time.perf_counter()
        write()
        return float(self.comm.allreduce(time.perf_counter() - start_s, MPI.MAX))

    def write_plain(self) -> None:
        if self.plain is None:
            return
        file, data = self.root / "plain", memoryview(self.plain).cast("B")
        with file.open("wb", buffering=0) as stream:
            for start in range(0, len(data), PLAIN_PIECE_NBYTES):
                piece = data[start : start + PLAIN_PIECE_NBYTES]
                while piece:
                    piece = piece[stream.write(piece) or 0 :]
            os.fsync(stream.fileno())

    def write_checkpoint(self, driver: str) -> None:
        self.step += 1
        path = write_checkpoint(self.comm, self.root, self.step, self.slices, {}, driver)
        self.measure(path)

    def measure(self, path: Path) -> None:
        if self.comm.rank == 0:
            self.disk_nbytes.append(sum(file.stat().st_size for file in path.iterdir()))

    def write_asynchronously(self) -> None:
        """Save while working on, and note how long the work was held up."""
        self.step += 1
        start_s = time.perf_counter()
        self.saver.begin(self.root, self.step, self.slices, {})
        stall_s = time.perf_counter() - start_s
        path = None
        while path is None:
            time.sleep(STEP_S)  # the work: it leaves the cores to the writers, as on a node with enough of them
            self.comm.Barrier()  # ranks of a training run come to the end of a step together
            start_s = time.perf_counter()
            path = self.saver.advance()
            stall_s += time.perf_counter() - start_s
        self.stalls.append(float(self.comm.allreduce(stall_s, MPI.MAX)))
        self.measure(path)

    def clear(self) -> None:
        self.comm.Barrier()
        if self.comm.rank == 0:
            for path in self.root.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.comm.Barrier()


def measure(comm: MPI.Intracomm, root: Path, mib: int, rounds: int) -> dict[str, object]:
    """Return all figures of one number of ranks."""
    side = Side(comm, root, make_state(comm, mib * 2**20))
    drivers = ["direct"] + ([] if any(comm.allgather(bool(mpio_obstacle()))) else ["mpio"])
    ways: dict[str, Callable[[], None]] = {"plain": side.write_plain}
    ways |= {driver: lambda driver=driver: side.write_checkpoint(driver) for driver in drivers}
    if not any(comm.allgather(bool(background_obstacle()))):
        ways["asynchronous"] = side.write_asynchronously
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first one warms up
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in order:
            seconds = side.timed(ways[name])
            side.clear()
            if number:
                times[name].append(seconds)
    side.saver.close()
    megabytes = side.nbytes / 1e6
    result: dict[str, object] = {
        "ranks": comm.size,
        "state_megabytes": round(megabytes, 1),
        "rounds": rounds,
        "megabytes_per_second": {name: round(megabytes / statistics.median(found), 1) for name, found in times.items()},
        "ratio_to_plain": {driver: ratio(times["plain"], times[driver]) for driver in drivers},
        "seconds": {name: [round(value, 3) for value in found] for name, found in times.items()},
        "disk_bytes_over_state": round(max(side.disk_nbytes) / side.nbytes, 5) if comm.rank == 0 else 0.0,
    }
    if side.stalls:
        result["stall_over_synchronous"] = ratio(side.stalls[1:], times["direct"])
        result["stall_seconds"] = [round(value, 4) for value in side.stalls[1:]]
        result["first_stall_seconds"] = round(side.stalls[0], 4)
    return result


def ratio(numerators: list[float], denominators: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 4)


def main() -> int:
    """Read the command line, and measure on these ranks or start jobs of 1, 2 and 4."""
    parser = argparse.ArgumentParser(description="Time checkpoints against a plain write.")
    parser.add_argument("--mib", type=int, default=256, help="size of the state")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the file system to measure")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    if launched_ranks() == 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        results = []
        for ranks in arguments.ranks:
            command = ["mpirun", "-n", str(ranks), sys.executable, __file__, "--mib", str(arguments.mib)]
            command += ["--rounds", str(arguments.rounds), "--folder", str(arguments.folder.absolute())]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=1800)
            if done.returncode:
                return done.returncode
            results.append(json.loads(done.stdout))
        print(json.dumps(results, indent=1))
        return 0
    comm = start_mpi().Dup()
    place = comm.bcast(tempfile.mkdtemp(prefix="checkpoint-io-", dir=arguments.folder) if comm.rank == 0 else None)
    try:
        result = measure(comm, Path(place), arguments.mib, arguments.rounds)
    finally:
        comm.Barrier()
        if comm.rank == 0:
            shutil.rmtree(place)
    if comm.rank == 0:
        result |= {"machine": platform.platform(), "cores": usable_cores(), "mpi": mpi_library()}
        result["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        print(json.dumps(result))
    MPI.Finalize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
