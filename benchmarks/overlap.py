"""How much of the gradient exchange hides behind the backward pass, between hosts with slow links.

    python benchmarks/overlap.py                                # 2 hosts at 1 Gbit/s, prints one JSON object
    python benchmarks/overlap.py --modes int8 --batches 512 --bucket-mib 1 4 --rate 100mbit

Training steps of the MLP 784-2048-2048-2048-10 between the hosts of benchmarks/netlab.py, one rank each. Three times are
taken in turns, each of the slowest rank: `compute`, a step of the same samples a rank without any exchange, on all hosts at
once; `exchange`, all buckets at once with nothing computed; `step`, the whole training step. `over` is how much longer the
step takes than the longer of the other two. `floor` is what no order of messages can beat: there is nothing to send before
the last wide layer has its gradients, and those of the first layer come at the very end. Where hosts share few cores,
what an exchange takes of these is missing for computing, which the floor does not know.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise

from netlab import end_in_order, environment, make_lab, measure_raw

from lepton_mpi.runtime.mpi import MPI, launched_ranks, mpi_library, start_mpi
from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi.config.command_line import build_config  # noqa: E402
from lepton_mpi.config.keys import list_keys  # noqa: E402
from lepton_mpi.config.toml_file import check_document  # noqa: E402
from lepton_mpi.data.dataset import ArrayDataset  # noqa: E402
from lepton_mpi.data.splits import DataSplits  # noqa: E402
from lepton_mpi.train.run import Run, build_run  # noqa: E402
from lepton_mpi.train.state import TrainState  # noqa: E402
from lepton_mpi.train.step import train_step  # noqa: E402

SIZES = (784, 2048, 2048, 2048, 10)


def make_run(comm: MPI.Intracomm, batch: int, mode: str, bucket_mib: float, thread: str) -> Run:
    """Return a run of the MLP on made-up samples."""
    random = np.random.default_rng(1)
    samples = random.standard_normal((max(4 * batch, 64), SIZES[0]), np.float32), random.integers(0, SIZES[-1], max(4 * batch, 64))
    document: dict[str, object] = {
        "model": {"hidden_sizes": list(SIZES[1:-1])},
        "data": {"normalise": "none", "max_shift": 0},
        "optimizer": {"name": "sgd", "lr": 1e-3, "schedule": "constant"},
        "train": {"global_batch": batch, "steps": 10**6},
        "reduce": {"mode": mode, "bucket_mib": bucket_mib, "progress_thread": thread},
    }
    config = build_config(check_document(document, list_keys(), "overlap"))
    train_set = ArrayDataset("made", *samples, SIZES[-1])
    return build_run(comm, config, DataSplits(train_set, ArrayDataset("none", samples[0][:0], samples[1][:0], SIZES[-1])))


def stepper(run: Run) -> Callable[[], None]:
    """Return a function that trains a step after the other."""
    state = TrainState()

    def step() -> None:
        nonlocal state
        state, _ = train_step(run.training, state, False)

    return step


def exchanger(run: Run) -> Callable[[], None]:
    """Return a function that only exchanges."""
    exchange = run.training.exchange

    def step() -> None:
        exchange.outgoing = None
        exchange.start_from(0)
        exchange.finish()
        exchange.publish()

    return step


def floor(compute_s: float, exchange_s: float) -> float:
    """Return the shortest possible step: layers' gradients leave one after the other, each once it is complete.

    Forward, input gradients and weight gradients each take a time in proportion to the layer's weights. A layer makes the
    gradient of its weights first; the first layer needs none of its input.
    """
    weights = np.array([a * b for a, b in pairwise(SIZES)], float)
    passes = weights.sum() + 2 * weights.sum() - weights[0]
    now, sent = weights.sum() / passes * compute_s, 0.0
    for i in reversed(range(len(weights))):
        now += weights[i] / passes * compute_s
        sent = max(sent, now) + weights[i] / weights.sum() * exchange_s
        now += weights[i] / passes * compute_s if i else 0.0
    return sent


def measure(
    comm: MPI.Intracomm, arguments: argparse.Namespace, mode: str, bucket: float, thread: str, batch: int
) -> dict[str, object]:
    """Take the three times in turns."""
    ranks = comm.Get_size()
    together = make_run(comm, batch * ranks, mode, bucket, thread)
    alone = make_run(MPI.COMM_SELF, batch, "exact", bucket, "off")
    contenders = {"compute": stepper(alone), "exchange": exchanger(together), "step": stepper(together)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-2, arguments.repeats):
        for name, contender in contenders.items():
            comm.Barrier()
            begin = time.perf_counter()
            contender()
            seconds = comm.allreduce(time.perf_counter() - begin, op=MPI.MAX)
            if repeat >= 0:
                times[name].append(seconds)
    sent = together.training.exchange.sent_nbytes
    together.free()
    alone.free()
    found = {name: float(np.median(values)) for name, values in times.items()}
    longer = max(found["compute"], found["exchange"])
    return {
        "mode": mode,
        "batch_per_rank": batch,
        "bucket_mib": bucket,
        "progress_thread": thread,
        **{f"{name}_ms": round(1e3 * seconds, 1) for name, seconds in found.items()},
        "floor_ms": round(1e3 * floor(found["compute"], found["exchange"]), 1),
        "over": round(found["step"] / longer - 1, 3),
        "hidden": round((found["compute"] + found["exchange"] - found["step"]) / min(found["compute"], found["exchange"]), 3),
        "sent_mb_per_step": round(sent / (2 * (arguments.repeats + 2)) / 1e6, 2),
    }


def measure_all(comm: MPI.Intracomm, arguments: argparse.Namespace) -> list[dict[str, object]]:
    results = []
    for mode in arguments.modes:
        for batch in arguments.batches:
            for bucket in arguments.bucket_mib:
                for thread in arguments.threads:
                    result = measure(comm, arguments, mode, bucket, thread, batch)
                    results.append(result)
                    if comm.Get_rank() == 0:
                        sys.stderr.write(json.dumps(result) + "\n")
    return results


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2, help="number of hosts (2)")
    parser.add_argument("--rate", default="1gbit", help="of each link and direction, as tc has it (1gbit)")
    parser.add_argument("--modes", nargs="+", default=["exact", "int8"], help="reduce.mode (exact int8)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024], help="samples a rank (64 256 1024)")
    parser.add_argument("--bucket-mib", type=float, nargs="+", default=[4.0], help="reduce.bucket_mib (4)")
    parser.add_argument("--threads", nargs="+", default=["off", "on"], help="reduce.progress_thread (off on)")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats (5)")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if launched_ranks() > 1:
        comm = start_mpi(several_threads=True).Dup()
        results = measure_all(comm, arguments)
        if comm.Get_rank() == 0:
            print(json.dumps(results))
        MPI.Finalize()
        return
    end_in_order()
    with make_lab(arguments.hosts, arguments.rate) as lab:
        raw = measure_raw(lab, 1.0)
        command = [*lab.command(1), sys.executable, __file__, *sys.argv[1:]]
        job = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment([]))
    if job.returncode != 0:
        raise SystemExit(f"overlap: the job failed with code {job.returncode}")
    head = {"benchmark": "overlap", "hosts": arguments.hosts, "rate": arguments.rate, "raw_mbs": round(raw / 1e6, 1)}
    machine = {"cores": usable_cores(), "mpi": mpi_library(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps({**head, **machine, "load_average": os.getloadavg()[0], "results": json.loads(job.stdout)}, indent=2))


if __name__ == "__main__":
    main()
