"""A save that is copied beside training holds the state of the step that it began at, whatever changes the state next."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_families import CASES
from small_runs import configure, do_steps, made_splits, on_grid, running

from lepton_mpi.checkpoint import saver as saver_module
from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.saver import BackgroundSaver
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.loop import Watcher, train
from lepton_mpi.train.resume import attributes_to_save, slices_to_save
from lepton_mpi.train.state import TrainState

pytestmark = pytest.mark.mpi

ADAMW = {"name": "adamw", "lr": 0.01, "clip_norm": 1.0}
AVERAGED = {"ema_decay": 0.7, "evaluate_every_steps": 1, "steps": 7}


def case(name: str) -> tuple[Config, DataSplits, int]:
    """Return configuration, data and ranks a node."""
    if name == "batch norm":
        config, splits = CASES["unet"]
        return replace(config, train=replace(config.train, **AVERAGED), optimizer=replace(config.optimizer, **ADAMW)), splits, 0
    sections: dict[str, dict[str, Any]] = {"optimizer": ADAMW, "train": AVERAGED}
    if name == "residuals":
        sections["reduce"] = {"mode": "int4"}
    elif name == "divided":
        sections["optimizer"] = ADAMW | {"shard": "data"}
    elif name == "lamb":
        sections["optimizer"] = ADAMW | {"name": "lamb"}
    elif name == "onebit":
        sections["optimizer"] = {"name": "onebit_adam", "lr": 0.01, "freeze_share": 0.3}
        sections["reduce"] = {"mode": "sign1"}
    elif name == "momenta":
        sections["optimizer"] = {"name": "sgd", "lr": 0.01, "momentum_correction": True}
        sections["reduce"] = {"mode": "topk", "topk_share": 0.1}
    elif name == "reproducible":
        sections["train"] = AVERAGED | {"reproducible": True}
    return configure(**sections), made_splits(), 0 if name in ("lamb", "reproducible") else 1


@pytest.fixture
def slow_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every copy begin long after a step would have changed the state."""
    true_copy = saver_module.SavePlan.copy

    def copy(*arguments: Any) -> bool:
        time.sleep(0.15)
        return true_copy(*arguments)

    monkeypatch.setattr(saver_module.SavePlan, "copy", copy)


def saved(comm: MPI.Intracomm, name: str, root: Path, asynchronous: bool) -> dict[str, Any]:
    """Train with saves, and return the content of all of them."""
    config, splits, ranks_per_node = case(name)
    options = {"every_steps": 2, "keep_last": 0, "asynchronous": asynchronous, "driver": "direct"}
    config = on_grid(replace(config, checkpoint=replace(config.checkpoint, **options)), GridShape(comm.size, 1, 1), ranks_per_node)
    with running(comm, config, splits) as run:
        train(run, TrainState(), root, lambda: False, Watcher())
    comm.Barrier()
    found = {}
    for path in list_checkpoints(root):
        with CheckpointReader(path) as reader:
            for tensor, info in reader.tensors.items():
                found[f"{path.name}{tensor}"] = reader.read(tensor, (0,) * len(info.shape), info.shape)
    return found


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not np.array_equal(a[name], b[name])]


@pytest.mark.timeout_s(240)
@pytest.mark.parametrize("name", ["batch norm", "residuals", "divided", "lamb", "onebit", "momenta", "reproducible"])
def test_a_save_holds_the_state_it_began_at(comm: MPI.Intracomm, folder: Path, slow_copies: None, name: str) -> None:
    waited = saved(comm, name, folder / "waited", asynchronous=False)
    assert len({tensor.split("/")[0] for tensor in waited}) == 4
    assert name != "momenta" or any("/rank_momentum/" in tensor for tensor in waited)
    assert any("/opt/ema/" in tensor for tensor in waited)
    assert name not in ("residuals", "onebit") or comm.size == 1 or any("/residual" in tensor for tensor in waited)
    assert differing(saved(comm, name, folder / "beside", asynchronous=True), waited) == []


def test_without_settling_it_would_not(
    comm: MPI.Intracomm, folder: Path, slow_copies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = saved(comm, "divided", folder / "waited", asynchronous=False)
    monkeypatch.setattr(NodeParameters, "settle", lambda memory: None)
    different = differing(saved(comm, "divided", folder / "beside", asynchronous=True), waited)
    for kind in ("/param/", "/opt/ema/", "/opt/first_moment/"):
        assert any(kind in tensor for tensor in different)


def test_an_evaluation_of_averaged_weights_waits_too(comm: MPI.Intracomm, folder: Path, slow_copies: None) -> None:
    """It puts the average in the place of the weights, also where no step lies between the save and it."""
    config, splits, _ = case("lamb")
    saver = BackgroundSaver(comm)
    with running(comm, on_grid(config, GridShape(comm.size, 1, 1)), splits) as run:
        run.network.memory.background_readers.append(saver.settle)
        state, _ = do_steps(run, TrainState(), 2)
        before = run.network.memory.values.copy()
        saver.begin(folder, state.step, slices_to_save(run.network, run.normalisation), attributes_to_save(run.network, state))
        assert run.test_loader is not None
        evaluate(run.network, run.test_loader)
        path = saver.drain()
        assert path is not None
        layout = run.network.memory.layout
        with CheckpointReader(path) as reader:
            for index, block in enumerate(layout.blocks):
                whole = reader.read(f"/param/{block.name}", (0,) * len(block.shape), block.shape)
                assert np.array_equal(whole, layout.view(index, before))
    saver.close()
