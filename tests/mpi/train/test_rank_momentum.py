"""Runs whose ranks send momenta: those of plain SGD where sums are exact; continued to the bit, or on another grid."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import configure, do_steps, facts, made_splits, on_grid, running

from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.optim.momentum_correction import RANK_MOMENTUM
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant"}
CORRECTED = SGD | {"momentum_correction": True}


def of_family(case: str, mode: str, **optimizer: Any) -> Config:
    """Return the run of a family with several buckets."""
    config = CASES[case][0]
    reduce = replace(config.reduce, mode=mode, bucket_mib=0.005, topk_share=0.1, powersgd_rank=2, warmup_share=0.0)
    return replace(config, reduce=reduce, optimizer=replace(config.optimizer, **(CORRECTED | optimizer)))


def all_weights(run: Run) -> dict[str, NDArray[np.float32]]:
    """Return this rank's blocks of the weights, by name."""
    memory = run.network.memory
    return {block.name: memory.layout.view(i, memory.values).copy() for i, block in enumerate(memory.layout.blocks)}


def fingerprint(run: Run) -> dict[str, Any]:
    memory, exchange = run.network.memory, run.training.exchange
    arrays = {"values": memory.values, "residual": getattr(exchange, "residual", None)} | memory.slots | memory.rank_slots
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items() if array is not None}


def sent_momenta(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the sum of the ranks' momenta in a checkpoint."""
    with CheckpointReader(path) as reader:
        found = {name: info.shape for name, info in reader.tensors.items() if name.startswith(f"/{RANK_MOMENTUM}/")}
        return {name: reader.read(name, (0,) * len(shape), shape) for name, shape in found.items()}


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
@pytest.mark.parametrize(("case", "shard"), [("mlp", "node"), ("gpt", "data"), ("unet", "node")])
def test_exact_sums_make_it_sgd(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], case: str, shard: str, ranks_per_node: int
) -> None:
    """Frozen parameters stay, and running statistics, where there are some, are the same as well."""
    if case == "mlp":
        splits, frozen = made_splits(), ("layers.1.*",)
        config = configure(
            optimizer=CORRECTED | {"freeze": frozen, "groups": ("layers.0.*: lr=0.5",)}, reduce={"bucket_mib": 0.001}
        )
    else:
        splits, config = CASES[case][1], of_family(case, "exact", shard=shard, clip_norm=0.0)
    plain = replace(config, optimizer=replace(config.optimizer, momentum_correction=False))
    for shape in grid_shapes:
        if max(shape.shards, shape.stages) > 3:
            continue
        weights = []
        for one in (plain, config):
            with running(comm, on_grid(one, shape, ranks_per_node), splits) as run:
                do_steps(run, TrainState(), 5)
                weights.append(all_weights(run))
                memory = run.network.memory
                assert list(memory.rank_slots) == ([] if one is plain else [RANK_MOMENTUM])
                for i, block in enumerate(memory.layout.blocks):
                    if block.spec.role == "weight" and one is config and block.size:
                        momentum = memory.layout.view(i, memory.rank_slots[RANK_MOMENTUM])
                        assert momentum.any() == (case != "mlp" or not block.name.startswith("layers.1.")), block.name
        for name, values in weights[0].items():
            np.testing.assert_allclose(weights[1][name], values, rtol=1e-5, atol=1e-6, err_msg=f"{shape} {name}")


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 3])
@pytest.mark.parametrize(
    ("case", "mode", "shard"), [("gpt", "topk", "data"), ("unet", "sign1", "node"), ("gpt", "powersgd", "node")]
)
def test_a_continued_run_is_the_uninterrupted_one(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, case: str, mode: str, shard: str, ranks_per_node: int
) -> None:
    for shape in grid_shapes:
        if max(shape.shards, shape.stages) > 3:
            continue
        config, splits = on_grid(of_family(case, mode, shard=shard), shape, ranks_per_node), CASES[case][1]
        with running(comm, config, splits) as run:
            middle, _ = do_steps(run, TrainState(), 3)
            path = save(run.network, run.normalisation, middle, folder / str(shape), "direct", run.extras)
            half = fingerprint(run)
            _, unbroken = do_steps(run, middle, 2)
            expected = fingerprint(run)
        with running(comm, config, splits) as run:
            found, _ = load(run.network, path, extras=run.extras)
            assert fingerprint(run) == half, shape
            _, continued = do_steps(run, found, 2)
            assert fingerprint(run) == expected, shape
            assert facts(continued) == facts(unbroken), shape


@pytest.mark.mpi(min_size=2)
def test_momenta_survive_a_change_of_grid(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    config, splits = of_family("gpt", "topk"), CASES["gpt"][1]
    with running(comm, on_grid(config, GridShape(comm.size, 1, 1), 1), splits) as run:
        state, _ = do_steps(run, TrainState(), 3)
        path = save(run.network, run.normalisation, state, folder / "first", "direct", run.extras)
    before = comm.bcast(sent_momenta(path))
    assert any(values.any() for values in before.values())
    for shape in grid_shapes:
        if max(shape.shards, shape.stages) > 3:
            continue
        with running(comm, on_grid(config, shape, 1), splits) as run:
            state, _ = load(run.network, path, extras=run.extras)
            again = save(run.network, run.normalisation, state, folder / str(shape), "direct", run.extras)
            after = comm.bcast(sent_momenta(again))
            assert after.keys() == before.keys()
            for name, values in before.items():
                np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-7)
            _, metrics = do_steps(run, state, 2)
            assert np.isfinite([m.loss for m in metrics]).all()


@pytest.mark.mpi
def test_a_clipped_norm_is_that_of_the_momentum(comm: MPI.Intracomm) -> None:
    """What is clipped is the sum of the momenta: with a norm below all of them every step is as long as it."""
    config = configure(optimizer=CORRECTED | {"clip_norm": 0.01, "weight_decay": 0.0}, train={"global_batch": 16})
    with running(comm, on_grid(config, GridShape(comm.size, 1, 1)), made_splits()) as run:
        state, memory = TrainState(), run.network.memory
        for _ in range(4):
            before = memory.values.copy()
            comm.Barrier()
            state, metrics = do_steps(run, state, 1)
            assert metrics[0].grad_norm > 0.01
            length = float(np.linalg.norm((memory.values - before).astype(np.float64)))
            assert length == pytest.approx(0.05 * 0.01, rel=1e-2)
