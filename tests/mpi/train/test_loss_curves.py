"""Every grid trains the same model as one process in plain NumPy does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from plain_training import train_plainly
from small_runs import configure, do_steps, facts, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.state import TrainState

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1.0, "schedule": "constant"}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.5, "warmup_steps": 3, "decay_steps": 7, "min_lr": 0.001}
LAMB = {"name": "lamb", "lr": 0.02, "weight_decay": 0.1, "clip_norm": 0.5, "schedule": "constant"}
NUM_STEPS = 12
# float32 against float64 over 12 steps; AdamW's first updates are +-lr however small, so rounding shows more in it.
TOLERANCE = {"sgd": 2e-5, "adamw": 1e-4, "lamb": 1e-4}


def check_curve(comm: MPI.Intracomm, config: Config, splits: DataSplits) -> None:
    plain = train_plainly(config, splits.train, NUM_STEPS)
    tolerance = TOLERANCE[config.optimizer.name]
    with running(comm, config, splits) as run:
        state, metrics = do_steps(run, TrainState(), NUM_STEPS)
        name = str(run.network.grid.shape)
        np.testing.assert_allclose([m.loss for m in metrics], plain.losses, rtol=tolerance, err_msg=name)
        np.testing.assert_allclose([m.grad_norm for m in metrics], plain.grad_norms, rtol=10 * tolerance, err_msg=name)
        np.testing.assert_allclose([m.accuracy for m in metrics], plain.accuracies, atol=1e-12, err_msg=name)
        assert state.step == NUM_STEPS
        assert len(set(comm.allgather(f"{state} {facts(metrics)}"))) == 1  # equal bits on all ranks
        for weight in run.network.weights.names:
            whole = run.network.weights.gather(weight)
            if whole is not None:
                np.testing.assert_allclose(whole, plain.weights[weight], atol=20 * tolerance, err_msg=f"{name}: {weight}")


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", [SGD, ADAMW, LAMB], ids=["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_all_grids_train_alike(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], optimizer: dict[str, object], micro_batches: int
) -> None:
    # 50 samples in batches of 16: the last batch of an epoch has 2, fewer than there may be data ranks.
    config = configure(optimizer=optimizer, train={"micro_batches": micro_batches})
    for shape in grid_shapes:
        check_curve(comm, on_grid(config, shape), made_splits())


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 3])
def test_simulated_nodes_train_alike(comm: MPI.Intracomm, grid_shapes: list[GridShape], ranks_per_node: int) -> None:
    config = configure(optimizer=SGD, reduce={"bucket_mib": 0.001})
    for shape in grid_shapes:
        check_curve(comm, on_grid(config, shape, ranks_per_node), made_splits())


@pytest.mark.mpi
@pytest.mark.parametrize("global_batch", [1, 3])
def test_batches_smaller_than_the_data_axis(comm: MPI.Intracomm, grid_shapes: list[GridShape], global_batch: int) -> None:
    # Nine samples of five classes: two and three steps an epoch.
    config = configure(optimizer=SGD | {"lr": 0.02}, train={"global_batch": global_batch})
    for shape in grid_shapes:
        check_curve(comm, on_grid(config, shape), made_splits(num_train=9))


@pytest.mark.mpi
@pytest.mark.parametrize("hidden_sizes", [(), (8,), (5, 5)], ids=str)
def test_shallow_and_even_models(comm: MPI.Intracomm, grid_shapes: list[GridShape], hidden_sizes: tuple[int, ...]) -> None:
    config = configure(optimizer=SGD, model={"hidden_sizes": hidden_sizes})
    for shape in grid_shapes:
        if shape.stages <= len(hidden_sizes) + 1:
            check_curve(comm, on_grid(config, shape), made_splits())


@pytest.mark.mpi
@pytest.mark.parametrize(("mode", "tolerance"), [("bf16", 0.01), ("int8", 0.02)])
def test_compressed_gradients_stay_close(comm: MPI.Intracomm, mode: str, tolerance: float) -> None:
    config = configure(optimizer=SGD | {"clip_norm": 0.0, "lr": 0.02}, reduce={"mode": mode})
    shape = GridShape(comm.Get_size(), 1, 1)
    splits = made_splits()
    plain = train_plainly(config, splits.train, NUM_STEPS)
    with running(comm, on_grid(config, shape, 1), splits) as run:
        _, metrics = do_steps(run, TrainState(), NUM_STEPS)
        np.testing.assert_allclose([m.loss for m in metrics], plain.losses, rtol=tolerance)
        assert len(set(comm.allgather(run.network.memory.values.tobytes()))) == 1


@pytest.mark.mpi
def test_a_rerun_has_the_same_bits(comm: MPI.Intracomm, grid_shapes: list[GridShape]) -> None:
    for shape in grid_shapes:
        config = on_grid(configure(optimizer=ADAMW), shape)
        digests = []
        for _ in range(2):
            with running(comm, config, made_splits()) as run:
                do_steps(run, TrainState(), 5)
                digests.append(run.network.weights.sha256())
        assert digests[0] == digests[1], shape
        other = replace(config, train=replace(config.train, seed=6))
        with running(comm, other, made_splits()) as run:
            do_steps(run, TrainState(), 5)
            assert run.network.weights.sha256() != digests[0]
