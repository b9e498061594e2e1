"""Checkpoints against a plain sequential write with fsync of as many bytes in the same folder.

    python benchmarks/checkpoint_io.py                        # starts itself on 1, 2 and 4 ranks, prints one JSON list
    mpirun -n 2 python benchmarks/checkpoint_io.py --mib 512  # on these ranks, prints one JSON object

One round writes: a plain file by rank 0; a checkpoint by each driver, from the first digest until it survives a crash, read back
and committed; and one in the background, beside the steps of a training run. They take turns in an order that is drawn for each
round. Before each, a file of as many bytes is written and deleted, so that all find memory for the page cache ready: a virtual
machine gives free memory back to its host, and to get it again takes longer than to write. Times are those of the slowest rank;
ratios are medians over rounds of times of the same round.

A step is what a model with these weights cannot do without: the three matrix products of each weight with BATCH rows, six
operations a weight and row, then a meeting of all ranks, then the update of weights and moments in place, and another meeting
before anybody reads the new weights. The state is half weights: 512 MiB are 67 million, whose products with 32 rows are 13 billion
operations, about 0.2 s on one core of 2025. 32 rows are few; a larger batch, attention or a pipeline make longer steps, and a
longer step hides more.

The stall of an asynchronous save is all time for which its calls hold a rank up: beginning it, waiting before the update for the
copy to be made (`settle`), and the calls at the step boundaries until it is committed. Besides, the copy and the process that
writes take cores and memory from the steps: `slower_seconds` is how much longer the steps took while a save was in flight than as
many steps without one, its stall included. The first save, which starts a process and gets its memory, is apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
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
from lepton_mpi.comm.waiting import wait  # noqa: E402
from lepton_mpi.runtime.ranges import split_range  # noqa: E402

PLAIN_PIECE_NBYTES = 8 * 2**20
COLUMNS = 1024
SHARES = (0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05)  # of the state, as layers of unlike size have them
BATCH = 32  # rows that a step multiplies the weights with
STEPS = 5  # how many of them are timed without a save


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


class Work:
    """Training of what a state holds: weights, each followed by its moment."""

    def __init__(self, comm: MPI.Intracomm, slices: list[TensorSlice]) -> None:
        self.comm = comm
        arrays = [part.array for part in slices]
        self.parameters = list(zip(arrays[::2], arrays[1::2], strict=True))
        self.grads = [np.zeros_like(weight) for weight in arrays[::2]]
        self.rows = np.random.default_rng(2).random((BATCH, COLUMNS), np.float32)

    def step(self, settle: Callable[[], None] = lambda: None) -> None:
        """Do a step; call `settle` before anything of the state changes."""
        for (weight, _), grad in zip(self.parameters, self.grads, strict=True):
            outputs = self.rows @ weight.T
            np.matmul(outputs.T, self.rows, out=grad)
            _ = outputs @ weight  # the gradient of the inputs
        settle()
        wait(self.comm.Ibarrier())  # ranks of a training run agree that the gradients are sound, and wait like this
        for (weight, moment), grad in zip(self.parameters, self.grads, strict=True):
            moment *= np.float32(0.9)
            moment += grad
            np.multiply(moment, np.float32(1e-9), out=grad)
            weight -= grad
        wait(self.comm.Ibarrier())  # nobody reads weights that others still update


class Side:
    """The ways to write one state, each timed alike."""

    def __init__(self, comm: MPI.Intracomm, root: Path, slices: list[TensorSlice]) -> None:
        self.comm, self.root, self.slices = comm, root, slices
        self.nbytes = comm.allreduce(sum(part.array.nbytes for part in slices))
        self.plain = np.random.default_rng(1).random(self.nbytes // 4, np.float32) if comm.rank == 0 else None
        self.saver = BackgroundSaver(comm)
        self.work = Work(comm, slices)
        self.step = 0
        self.stalls: list[dict[str, float]] = []
        self.steps_beside: list[int] = []
        self.disk_nbytes: list[int] = []

    def timed(self, write: Callable[[], object]) -> float:
        """Return how long the slowest rank takes, from a moment when nothing else is to be written and memory is at hand."""
        if self.comm.rank == 0:
            scratch = self.root / "scratch"
            with scratch.open("wb", buffering=0) as stream:
                for _ in range(0, self.nbytes, PLAIN_PIECE_NBYTES):
                    stream.write(bytes(PLAIN_PIECE_NBYTES))
            scratch.unlink()
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

    def work_alone(self) -> None:
        for _ in range(STEPS):
            self.work.step()

    def write_asynchronously(self) -> None:
        """Save while working on, and note how long the work was held up."""
        self.step += 1
        stalls = {"begin": 0.0, "settle": 0.0, "advance": 0.0}

        def held_up(name: str, call: Callable[[], Path | None]) -> Path | None:
            start_s = time.perf_counter()
            result = call()
            stalls[name] += time.perf_counter() - start_s
            return result

        held_up("begin", lambda: self.saver.begin(self.root, self.step, self.slices, {}))
        path, steps = None, 0
        while path is None:
            self.work.step(lambda: held_up("settle", self.saver.settle) and None)
            steps += 1
            path = held_up("advance", self.saver.advance)
        self.stalls.append(max(self.comm.allgather(stalls), key=lambda parts: sum(parts.values())))
        self.steps_beside.append(steps)
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
        ways |= {"steps": side.work_alone, "asynchronous": side.write_asynchronously}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first one warms up
        for name in random.Random(number).sample(list(ways), len(ways)):
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
        "megabytes_per_second": {
            name: round(megabytes / statistics.median(found), 1) for name, found in times.items() if name != "steps"
        },
        "ratio_to_plain": {driver: ratio(times["plain"], times[driver]) for driver in drivers},
        "seconds": {name: [round(value, 3) for value in found] for name, found in times.items()},
        "disk_bytes_over_state": round(max(side.disk_nbytes) / side.nbytes, 5) if comm.rank == 0 else 0.0,
    }
    if side.stalls:
        first, *stalls = (sum(parts.values()) for parts in side.stalls)
        result["stall_over_synchronous"] = ratio(stalls, times["direct"])
        result["stall_seconds"] = [round(value, 4) for value in stalls]
        result["stall_parts"] = {name: [round(parts[name], 4) for parts in side.stalls[1:]] for name in side.stalls[0]}
        result["first_stall_seconds"] = round(first, 4)
        step_s = [found / STEPS for found in times["steps"]]
        beside = zip(times["asynchronous"], side.steps_beside[1:], step_s, strict=True)
        result["step_seconds"] = round(statistics.median(step_s), 4)
        result["steps_beside_a_save"] = side.steps_beside[1:]
        result["slower_seconds"] = [round(total - steps * alone, 3) for total, steps, alone in beside]
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
