"""Products in bf16: training goes about as in fp32, and the weights stay fp32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import configure, do_steps, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

NUM_STEPS = 50
SGD = {"name": "sgd", "lr": 0.01, "schedule": "constant"}


def runs() -> dict[str, tuple[Config, DataSplits]]:
    config, splits = CASES["gpt"]
    gpt = replace(config, model=replace(config.model, dropout=0.0), train=replace(config.train, ema_decay=0.0))
    return {"mlp": (configure(optimizer=SGD), made_splits()), "gpt": (gpt, splits)}


def with_precision(config: Config, precision: str) -> Config:
    return replace(config, train=replace(config.train, precision=precision))


def all_weights(run: Run) -> NDArray[np.float32]:
    return np.concatenate([parameter.value.reshape(-1) for parameter in run.network.memory.parameters])


@pytest.mark.mpi
@pytest.mark.parametrize("family", ["mlp", "gpt"])
def test_losses_stay_near_those_of_fp32(comm: MPI.Intracomm, grid_shapes: list[GridShape], family: str) -> None:
    config, splits = runs()[family]
    fitting = [shape for shape in grid_shapes if shape.shards < 4]  # the gpt has three heads
    for shape in dict.fromkeys((fitting[0], fitting[-1])):  # one of stages or shards, one of data ranks
        losses, last = {}, {}
        for precision in ("fp32", "bf16"):
            with running(comm, with_precision(on_grid(config, shape), precision), splits) as run:
                _, steps = do_steps(run, TrainState(), NUM_STEPS)
                losses[precision], last[precision] = np.array([m.loss for m in steps]), all_weights(run)
        assert losses["fp32"][-5:].mean() < 0.9 * losses["fp32"][:5].mean()  # there was something to learn
        assert losses["bf16"][-5:].mean() == pytest.approx(losses["fp32"][-5:].mean(), rel=0.03)
        np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.1)
        assert not np.array_equal(losses["bf16"][1:], losses["fp32"][1:])  # something was rounded
        low_bits = last["bf16"].view(np.uint32) & 0xFFFF
        assert np.count_nonzero(low_bits) > 0.9 * low_bits.size  # as float32, no bf16 numbers
        relative = np.abs(last["bf16"] - last["fp32"]).max() / np.abs(last["fp32"]).max()
        assert 0 < relative < 0.1


@pytest.mark.mpi
def test_small_updates_are_not_lost(comm: MPI.Intracomm) -> None:
    config, splits = runs()["mlp"]
    # A weight of bf16 has 8 bits: steps of a thousandth of it would vanish.
    config = with_precision(on_grid(config, GridShape(comm.size, 1, 1)), "bf16")
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-5, momentum=0.0))
    with running(comm, config, splits) as run:
        before = all_weights(run)
        do_steps(run, TrainState(), 3)
        change = np.abs(all_weights(run) - before)
    assert np.count_nonzero(change) > 0.5 * change.size
    assert change.max() < 1e-3 * np.abs(before).max()
