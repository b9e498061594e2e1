"""Checkpoints of real training runs under the tools, the trials of damage in short form, and the example that reads one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from training_job import SMALL, Commands, Trainer, grid

ROOT = Path(__file__).parents[2]
TRIALS = ROOT / "benchmarks" / "corruption_trials.py"


def test_tools_on_a_run_of_two_grids(train: Trainer, lepton: Commands) -> None:
    first = train(2, *SMALL, *grid("2x1x1"), "--train.steps", 2)
    second = train(2, *SMALL, *grid("1x2x1"), "--train.steps", 3)
    found = json.loads(lepton(2, "inspect", first.folder, "--json"))
    assert (found["step"], found["attributes"]["family"], found["attributes"]["grid"]["data"]) == (2, "mlp", 2)
    assert "/param/layers.0.weight" in {tensor["path"] for tensor in found["tensors"]}
    assert "fine" in lepton(2, "verify", first.folder)
    compared = json.loads(lepton(1, "diff", first.folder, first.folder, "--json"))
    assert (compared["equal"], compared["num_equal"]) == (True, len(found["tensors"]))
    compared = json.loads(lepton(2, "diff", first.folder, second.folder, "--json", code=1))
    assert compared["attributes"]["step"] == [2, 3]
    assert "grid" in compared["attributes"]
    assert "/param/layers.0.weight" in {tensor["path"] for tensor in compared["tensors"]}
    data = first.checkpoint(2)
    os.truncate(data, data.stat().st_size - 1)
    assert "it was cut or changed" in lepton(2, "verify", first.folder, code=1)
    assert "no such folder" in lepton.refused(2, "verify", first.folder / "nowhere")


def test_damage_is_detected_in_short_form(train: Trainer) -> None:
    options = (*SMALL, "--train.steps", 4, "--checkpoint.every_steps", 2)
    runs = [train(2, *options, "--train.seed", seed).folder for seed in (1, 2)]
    command = [sys.executable, str(TRIALS), "--trials", "80", "--seed", "7", "--runs", *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["trials"], found["undetected"], found["whole_refused"], found["problems"]) == (80, 0, 0, {})
    assert len(found["kinds"]) > 35


def test_example_reads_weights_with_h5py_alone(train: Trainer) -> None:
    job = train(2, *SMALL, "--train.steps", 2)
    text = (ROOT / "examples" / "read_checkpoint.py").read_text()
    assert "lepton_mpi" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    command = [sys.executable, "-P", str(ROOT / "examples" / "read_checkpoint.py"), str(job.checkpoint(2))]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 2, written by lepton_mpi ")
    assert "layers.0.weight: (64, 64), float32, mean " in done.stdout
    if shutil.which("h5dump"):
        dump = subprocess.run(["h5dump", "-d", "/param/layers.0.bias", str(job.checkpoint(2))], capture_output=True, text=True)
        assert "DATASPACE  SIMPLE { ( 64 ) / ( 64 ) }" in dump.stdout
