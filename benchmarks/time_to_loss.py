"""Time until a GPT on bytes reaches a fixed loss, by codec, between hosts with slow links.

    python benchmarks/time_to_loss.py                                   # 2 hosts at 100 Mbit/s and at 1 Gbit/s, prints JSON
    python benchmarks/time_to_loss.py --rates 1gbit --modes exact int8 --steps 60

Runs `python -m lepton_mpi.train` on the text of Python's own library between the hosts of benchmarks/netlab.py, one rank
each, with the same seed and number of steps for every codec. The loss to reach is what `exact` has after 80% of its steps;
losses are means over the last fifth of all steps. Times are sums of the trainer's own step times; starting is not counted.
`sent_mb` is what left a host in a step, headers and the job's start included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from netlab import Lab, end_in_order, environment, make_lab, measure_raw

MODEL = ("--model.family", "gpt", "--model.num_layers", "4", "--model.width", "192", "--model.num_heads", "4")
DATA = ("--model.context", "64", "--data.format", "pystdlib", "--data.test_fraction", "0.0002")
REST = (
    "--train.evaluate_every_epochs",
    "0",
    "--checkpoint.every_steps",
    "0",
    "--optimizer.lr",
    "0.002",
)
# 1-bit Adam is the form of Adam that was made for sign1.
ONEBIT = ("--optimizer.name", "onebit_adam")
MODES = {
    "exact": (),
    "bf16": (),
    "int8": (),
    "int4": (),
    "sign1": (),
    "sign1, 1-bit Adam": ONEBIT,
    "topk": (),
    "powersgd": (),
}


def train(lab: Lab, mode: str, steps: int, batch: int, folder: Path) -> tuple[list[float], list[float], float]:
    """Train once; returns loss and seconds of every step, and bytes that left the first host a step."""
    command = [*lab.command(1), sys.executable, "-m", "lepton_mpi.train", *MODEL, *DATA, *REST, *MODES[mode]]
    command += ["--reduce.mode", mode.split(",")[0], "--train.global_batch", str(batch)]
    command += ["--train.steps", str(steps), "--optimizer.decay_steps", str(steps)]
    before = sent_nbytes(lab)
    job = subprocess.run(
        [*command, "--run.dir", str(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment([])
    )
    if job.returncode != 0:
        raise SystemExit(f"time_to_loss: {mode} failed with code {job.returncode}")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "samples_per_second" in record]
    seconds = [batch / record["samples_per_second"] for record in records]
    return [record["loss"] for record in records], seconds, (sent_nbytes(lab) - before) / steps


def sent_nbytes(lab: Lab) -> int:
    """Return what has left the first host so far."""
    path = "/sys/class/net/veth/statistics/tx_bytes"
    return int(subprocess.run(["ip", "netns", "exec", lab.names[0], "cat", path], check=True, capture_output=True).stdout)


def smooth(losses: list[float]) -> list[float]:
    """Return the mean over the last fifth of all steps, at every step; all runs see the same samples in the same steps."""
    window = max(len(losses) // 5, 1)
    return [sum(losses[max(i + 1 - window, 0) : i + 1]) / min(window, i + 1) for i in range(len(losses))]


def measure(rate: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Train with every codec over links of a rate."""
    found = {}
    with make_lab(2, rate) as lab, tempfile.TemporaryDirectory() as folder:
        raw = measure_raw(lab, 1.0)
        for mode in ("exact", *(m for m in arguments.modes if m != "exact")):
            found[mode] = train(lab, mode, arguments.steps, arguments.batch, Path(folder) / mode.replace(" ", ""))
            sys.stderr.write(f"{rate} {mode}: {sum(found[mode][1]):.1f} s\n")
    target = smooth(found["exact"][0])[int(0.8 * arguments.steps) - 1]
    results = []
    for mode, (losses, seconds, sent) in found.items():
        reached = next((i + 1 for i, loss in enumerate(smooth(losses)) if loss <= target and 5 * i >= len(losses)), None)
        results.append(
            {
                "mode": mode,
                "steps_to_loss": reached,
                "seconds_to_loss": None if reached is None else round(sum(seconds[:reached]), 2),
                "ms_per_step": round(1e3 * sorted(seconds)[len(seconds) // 2], 1),
                "total_s": round(sum(seconds), 2),
                "last_loss": round(smooth(losses)[-1], 4),
                "sent_mb": round(sent / 1e6, 3),
                "losses": [round(loss, 4) for loss in losses],
            }
        )
    return {"rate": rate, "raw_mbs": round(raw / 1e6, 1), "target_loss": round(target, 4), "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["100mbit", "1gbit"], help="of each link and direction, as tc has it")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="codecs; exact is always among them")
    parser.add_argument("--steps", type=int, default=100, help="steps of every run (100)")
    parser.add_argument("--batch", type=int, default=8, help="samples a step, over both hosts (8)")
    arguments = parser.parse_args()
    end_in_order()
    rates = [measure(rate, arguments) for rate in arguments.rates]
    head = {"benchmark": "time_to_loss", "model": " ".join(MODEL + DATA), "steps": arguments.steps, "batch": arguments.batch}
    machine = {"cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    print(json.dumps({**head, **machine, "rates": rates}, indent=2))


if __name__ == "__main__":
    main()
