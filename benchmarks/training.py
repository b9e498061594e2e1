"""Whole training steps of an MLP, a ResNet-20 and a GPT: lepton_mpi against PyTorch's DistributedDataParallel over gloo.

    python benchmarks/training.py                          # all models on 1 and on 2 ranks, prints one JSON list
    python benchmarks/training.py --models gpt --ranks 2   # a part of it

Needs PyTorch. Both sides run the same sizes, batches and optimizers with one thread a rank, in turns, each in processes of
its own. lepton_mpi's figure is what a user gets from the training command, reading and normalising data included; PyTorch trains
on one batch that lies in memory. The start is left out on both sides, the first steps on PyTorch's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """One model: samples a rank and step, steps that are timed, and what lepton_mpi is told."""

    batch: int
    steps: int
    overrides: tuple[str, ...]


CASES = {
    "mlp": Case(256, 12, ("--model.family", "mlp", "--model.hidden_sizes", "2048,2048,2048", "--data.format", "npz")),
    "resnet": Case(
        64, 12, ("--model.family", "resnet", "--data.format", "npz", "--optimizer.name", "sgd", "--optimizer.weight_decay", "1e-4")
    ),
    "gpt": Case(8, 6, ("--model.family", "gpt", "--data.format", "pystdlib", "--data.test_fraction", "0.00001")),
}
SHAPES = {"mlp": (784,), "resnet": (3, 32, 32)}


def measure_ours(name: str, ranks: int, precision: str, more: Sequence[str] = (), steady: bool = False) -> float:
    """Return samples per second of the training command, over all steps, or with `steady` over the last ones."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        data = []
        if name in SHAPES:
            random = np.random.default_rng(0)
            x, y = random.standard_normal((4096, *SHAPES[name])).astype(np.float32), random.integers(0, 10, 4096)
            np.savez(f"{folder}/data.npz", x=x, y=y)
            data = ["--data.path", f"{folder}/data.npz", "--data.test_fraction", "0"]
        settings = {
            "run.dir": f"{folder}/run",
            "run.progress": "off",
            "grid.data": ranks,
            "train.global_batch": case.batch * ranks,
            "train.steps": case.steps,
            "train.evaluate_every_epochs": 0,
            "train.precision": precision,
            "checkpoint.every_steps": 0,
        }
        command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "lepton_mpi.train", *case.overrides, *data]
        command += [part for key, value in settings.items() for part in (f"--{key}", str(value))] + list(more)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT, timeout=1200)
        if steady:
            return float(json.loads(Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()[-1])["samples_per_second"])
        return float(json.loads(Path(f"{folder}/run/summary.json").read_text())["samples_per_second"])


def measure_torch(name: str, ranks: int, precision: str) -> float:
    """Return samples per second of PyTorch, in a process that starts its own ranks."""
    command = [sys.executable, __file__, "--torch", name, str(ranks), precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=1200)
    found = re.search(r"samples_per_second ([0-9.]+)", done.stdout)
    if found is None:
        raise SystemExit(f"PyTorch printed no result:\n{done.stdout}\n{done.stderr}")
    return float(found[1])


def run_torch(name: str, ranks: int, precision: str) -> None:
    """Start PyTorch's ranks and print the result."""
    import torch.multiprocessing as processes

    with tempfile.NamedTemporaryFile() as meeting:
        os.unlink(meeting.name)
        processes.spawn(_torch_rank, (name, ranks, precision, f"file://{meeting.name}"), nprocs=ranks)
        Path(meeting.name).touch()  # for the context manager to remove


def _torch_rank(rank: int, name: str, ranks: int, precision: str, meeting: str) -> None:
    import time

    import torch
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    case, model = CASES[name], _torch_model(name)
    replicated = DistributedDataParallel(model) if ranks > 1 else model
    if name == "resnet":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if name == "gpt":
        x = torch.randint(0, 256, (case.batch, 256))
        y = torch.randint(0, 256, (case.batch * 256,))
    else:
        x, y = torch.randn(case.batch, *SHAPES[name]), torch.randint(0, 10, (case.batch,))
    for step in range(case.steps + WARM_UP):
        if step == WARM_UP:
            torch.distributed.barrier()
            begin = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = replicated(x)
            loss = torch.nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), y)
        loss.backward()
        optimizer.step()
    torch.distributed.barrier()
    if rank == 0:
        print("samples_per_second", case.batch * ranks * case.steps / (time.perf_counter() - begin))
    torch.distributed.destroy_process_group()


def _torch_model(name: str) -> Any:
    import torch
    from torch import nn

    if name == "mlp":
        widths = [784, 2048, 2048, 2048, 10]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    if name == "gpt":
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = GPT2Config(
            vocab_size=256, n_positions=256, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
        sizes._attn_implementation = "sdpa"
        gpt = GPT2LMHeadModel(sizes)

        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gpt = gpt

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.gpt(ids, use_cache=False).logits
                return logits

        return Logits()

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            changes = stride > 1 or inputs != outputs
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.shortcut = shortcut if changes else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    widths = [16, 16, 32, 64]
    blocks = [
        Block(widths[g] if i == 0 else widths[g + 1], widths[g + 1], 2 if g and i == 0 else 1) for g in range(3) for i in range(3)
    ]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--torch", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch:
        run_torch(arguments.torch[0], int(arguments.torch[1]), arguments.torch[2])
        return
    results = []
    for name in arguments.models:
        for ranks in arguments.ranks:
            sides: dict[str, list[float]] = {"ours": [], "torch": []}
            for _ in range(arguments.repeats):
                sides["ours"].append(measure_ours(name, ranks, arguments.precision))
                sides["torch"].append(measure_torch(name, ranks, arguments.precision))
            ratios = [ours / torch for ours, torch in zip(sides["ours"], sides["torch"], strict=True)]
            results.append(
                {
                    "benchmark": "training",
                    "model": name,
                    "ranks": ranks,
                    "precision": arguments.precision,
                    "samples_per_second": statistics.median(sides["ours"]),
                    "torch_samples_per_second": statistics.median(sides["torch"]),
                    "ratio": statistics.median(ratios),
                    "ratios": ratios,
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
