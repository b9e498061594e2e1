"""Seconds from `mpirun` to the first finished training step of the default job.

    python benchmarks/startup.py [--ranks 16] [--repeats 5]

Starts its ranks itself and prints JSON. The end is the moment at which rank 0 writes its first line of metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path


def first_step_s(ranks: int) -> float:
    """Start a job of one step and return when it was done."""
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "-m", "lepton_mpi.train", "--train.steps", "1", "--run.dir", folder, "--run.progress", "off"]
        begin = time.time()
        job = subprocess.run(["mpirun", "-n", str(ranks), *train], capture_output=True, text=True)
        if job.returncode != 0:
            raise SystemExit(f"the job failed:\n{job.stdout}{job.stderr}")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        if len(lines) < 1 or json.loads(lines[0])["step"] != 1:
            raise SystemExit(f"expected a line about step 1, found {lines}")
        log = (Path(folder) / "logs" / "rank-0000.log").read_text().splitlines()
        stamp = next(line.split()[0] for line in log if line.endswith("first step done"))
        return datetime.fromisoformat(stamp).timestamp() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16, help="ranks (16)")
    parser.add_argument("--repeats", type=int, default=5, help="jobs (5), after one to warm the file cache")
    arguments = parser.parse_args()
    times = [first_step_s(arguments.ranks) for _ in range(arguments.repeats + 1)][1:]
    result = {
        "benchmark": "startup",
        "ranks": arguments.ranks,
        "cores": len(os.sched_getaffinity(0)),
        "first_step_s": {"min": min(times), "median": statistics.median(times), "max": max(times)},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
