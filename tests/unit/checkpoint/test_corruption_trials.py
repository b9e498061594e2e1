"""The trials of damage notice it if damage goes unnoticed; their short form is in tests/jobs."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.writer import write_checkpoint

FILE = Path(__file__).parents[3] / "benchmarks" / "corruption_trials.py"


@pytest.fixture
def trials(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # which the benchmark sets, to be put back
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("corruption_trials", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # as dataclasses want it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(trials, comm, tmp_path):
    for seed, name in enumerate(("one", "two")):
        for step in (2, 4):
            values = np.random.default_rng([seed, step]).random(5000)
            write_checkpoint(comm, tmp_path / name, step, [TensorSlice("/param/w", (5000,), (0,), values)], {})
    return partial(trials.run_trial, comm, tmp_path)


def test_every_kind_of_damage_is_detected(trials, run):
    verdicts = {kind: run(kind, change, random.Random(3)) for kind, (_, change) in trials.KINDS.items()}
    assert {kind: verdict for kind, verdict in verdicts.items() if verdict not in trials.FINE} == {}
    assert run("none", None, random.Random(3)) == "whole"


def test_what_is_not_detected_is_noticed(trials, run, monkeypatch):
    flip = trials.KINDS["flip: elements"][1]
    monkeypatch.setattr(trials, "find_damage", lambda comm, path: [])
    assert run("flip: elements", flip, random.Random(1)) == "taken for whole by verify, resume: [True, False]"
    monkeypatch.setattr(trials, "find_damage", lambda comm, path: ["all of it"])
    assert run("none", None, random.Random(1)) == "a whole one was refused: [False, True]"
