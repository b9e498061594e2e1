"""Gradients that are scaled value by value before a codec: same scales on all ranks, continued to the bit, on any grid."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.parallel.value_scales import ValueScales
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

pytestmark = pytest.mark.mpi
WARM_UP, STEPS = 3, 6


def scaled(shard: str = "node", mode: str = "sign1") -> Config:
    """Return the run of a small GPT with several buckets, whose warm-up ends after 3 steps."""
    config = CASES["gpt"][0]
    reduce = replace(config.reduce, mode=mode, bucket_mib=0.005, warmup_share=WARM_UP / STEPS)
    return replace(config, reduce=reduce, optimizer=replace(config.optimizer, shard=shard, decay_steps=STEPS))


def scales_of(run: Run) -> ValueScales:
    exchange = run.training.exchange
    assert isinstance(exchange, GradientExchange) and exchange._scales is not None
    return exchange._scales


def fingerprint(run: Run) -> dict[str, Any]:
    memory, exchange, scales = run.network.memory, run.training.exchange, scales_of(run)
    owned = [scales.squares[start:stop] for start, stop in scales.owned]
    arrays = {"values": memory.values, "residual": exchange.residual, "squares": np.concatenate(owned or [np.zeros(0)])}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in (arrays | memory.slots).items()}


def fitting(grid_shapes: list[GridShape]) -> list[GridShape]:
    return [shape for shape in grid_shapes if shape.shards <= 3 and shape.stages <= 3]


@pytest.mark.parametrize("ranks_per_node", [1, 2])
@pytest.mark.parametrize("shard", ["node", "data"])
def test_a_run_continued_before_and_after_the_warm_up(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, shard: str, ranks_per_node: int
) -> None:
    for shape in fitting(grid_shapes):
        config, splits = on_grid(scaled(shard), shape, ranks_per_node), CASES["gpt"][1]
        with running(comm, config, splits) as run:
            _, unbroken = do_steps(run, TrainState(), STEPS)
            end = fingerprint(run)
        for before in (WARM_UP - 1, WARM_UP, WARM_UP + 1):
            with running(comm, config, splits) as run:
                middle, _ = do_steps(run, TrainState(), before)
                path = save(run.network, run.normalisation, middle, folder / f"{shape}-{before}", "direct", run.extras)
                half = fingerprint(run)
            with running(comm, config, splits) as run:
                found, _ = load(run.network, path, extras=run.extras)
                assert fingerprint(run) == half, (shape, before)
                _, continued = do_steps(run, found, STEPS - before)
                assert fingerprint(run) == end, (shape, before)
                assert facts(continued) == facts(unbroken[before:]), (shape, before)


def squares(path: Path) -> dict[str, NDArray[np.float32]]:
    with CheckpointReader(path) as reader:
        found = {name: info.shape for name, info in reader.tensors.items() if name.startswith("/gradient_squares/")}
        return {name: reader.read(name, (0,) * len(shape), shape) for name, shape in found.items()}


def test_what_was_learned_passes_between_grids(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    splits = CASES["gpt"][1]
    with running(comm, on_grid(scaled(), GridShape(comm.size, 1, 1), 1), splits) as run:
        state, _ = do_steps(run, TrainState(), WARM_UP + 1)
        path = save(run.network, run.normalisation, state, folder / "first", "direct", run.extras)
    before = comm.bcast(squares(path))
    assert before and all(values.any() for values in before.values())
    for shape in fitting(grid_shapes):
        for shard in ("node", "data"):
            with running(comm, on_grid(scaled(shard), shape, 2), splits) as run:
                state, _ = load(run.network, path, extras=run.extras)
                again = save(run.network, run.normalisation, state, folder / f"{shape} {shard}", "direct", run.extras)
                after = comm.bcast(squares(again))
                assert {name: values.tobytes() for name, values in after.items()} == {
                    name: values.tobytes() for name, values in before.items()
                }
                _, metrics = do_steps(run, state, STEPS - WARM_UP - 1)
                assert np.isfinite([m.loss for m in metrics]).all()


@pytest.mark.parametrize("shard", ["node", "data"])
def test_ranks_scale_alike_and_take_nothing_from_the_bits(comm: MPI.Intracomm, shard: str) -> None:
    with running(comm, on_grid(scaled(shard), GridShape(comm.size, 1, 1), 1), CASES["gpt"][1]) as run:
        do_steps(run, TrainState(), WARM_UP + 1)
        scales, memory = scales_of(run), run.network.memory
        scales.find_scales()
        assert (scales._scales is not None) == (comm.size > 1)
        if scales._scales is None:
            return
        assert len(set(comm.allgather(scales._scales.tobytes()))) == 1
        assert len(np.unique(scales._scales)) > 3
        grad = memory.grads[run.network.grid.data_in_node.Get_rank()]
        grad[:] = drawn = np.random.default_rng(comm.rank).standard_normal(grad.size).astype(np.float32)
        scales.divide(0, scales.squares.size)
        assert (grad[: scales.squares.size] != drawn[: scales.squares.size]).any()
        scales.multiply(None)
        for start, stop in scales.owned:
            assert grad[start:stop].tobytes() == drawn[start:stop].tobytes()


def test_a_warm_up_is_a_run_in_its_own_mode(comm: MPI.Intracomm) -> None:
    """Until its end a run with sign1 has the bits of one with the mode of the warm-up; then it has others."""
    splits, shape = CASES["gpt"][1], GridShape(comm.size, 1, 1)
    found = []
    for mode in ("exact", "sign1"):
        config = on_grid(scaled(mode=mode), shape, 1)
        config = replace(config, reduce=replace(config.reduce, warmup_mode="exact"))
        with running(comm, config, splits) as run:
            state, metrics = do_steps(run, TrainState(), WARM_UP)
            warm = run.network.weights.sha256(), facts(metrics)
            do_steps(run, state, 1)
            found.append((warm, run.network.weights.sha256()))
    assert found[0][0] == found[1][0]
    assert (found[0][1] == found[1][1]) == (comm.size == 1)
