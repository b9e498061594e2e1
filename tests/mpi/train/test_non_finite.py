"""NaN in the data or the gradients ends a run on all ranks alike, before any weight is touched."""

from __future__ import annotations

import numpy as np
import pytest
from small_runs import NUM_CLASSES, configure, do_steps, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.errors import NonFiniteError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import train_step

CONFIG = configure(data={"normalise": "none"}, optimizer={"name": "sgd", "lr": 0.01})


def splits_with_nan(bad: list[int]) -> DataSplits:
    splits = made_splits()
    inputs, labels = splits.train.read(np.arange(splits.train.num_samples))
    inputs[bad, 3] = np.nan
    return DataSplits(ArrayDataset("made", inputs, labels, NUM_CLASSES), splits.test)


def samples_of_data_rank(run: Run, state: TrainState, data_index: int) -> list[int]:
    """Return the samples that the ranks of a data index take in the step after a state."""
    own = np.concatenate(run.training.loader.plan(state.epoch, state.position).indices)
    return run.network.grid.world.bcast(own.tolist(), root=run.network.grid.rank_at(data_index, 0, 0))


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_nan_of_one_data_rank_is_named_and_stops_all(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], ranks_per_node: int
) -> None:
    for shape in grid_shapes:
        config = on_grid(CONFIG, shape, ranks_per_node)
        with running(comm, config, made_splits()) as run:
            state, _ = do_steps(run, TrainState(), 1)
            bad = samples_of_data_rank(run, state, shape.data - 1)[:1]
            fine = run.network.weights.sha256()
        with running(comm, config, splits_with_nan(bad)) as run:
            state, _ = do_steps(run, TrainState(), 1)
            # The loss is found on the first shard of the last stage.
            culprit = run.network.grid.rank_at(shape.data - 1, shape.stages - 1, 0)
            with pytest.raises(NonFiniteError, match=rf"the loss became NaN .* at step 1 on rank {culprit} \(") as found:
                train_step(run.training, state, False)
            assert "samples 16..32 of epoch 0" in str(found.value)
            assert len(set(comm.allgather(str(found.value)))) == 1
            assert run.network.weights.sha256() == fine


@pytest.mark.mpi
def test_a_gradient_that_overflows_stops_all(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in grid_shapes:
        with running(comm, on_grid(CONFIG, shape), made_splits()) as run:
            before = run.network.weights.sha256()
            grid = run.network.grid
            pipeline_train = run.network.pipeline.train

            def spoil(batch, loss, factor, observer, grid=grid, run=run, train=pipeline_train):  # type: ignore[no-untyped-def]
                class Spoiler:
                    def layer_done(self, layer: int, micro_batch: int) -> None:
                        if grid.rank == grid.size - 1:
                            for parameter in run.network.memory.parameters:
                                parameter.grad[...] = np.inf
                        observer.layer_done(layer, micro_batch)

                return train(batch, loss, factor, Spoiler())

            monkeypatch.setattr(run.network.pipeline, "train", spoil)
            with pytest.raises(NonFiniteError, match=r"the gradient became NaN or infinite at step 0"):
                train_step(run.training, TrainState(), False)
            monkeypatch.undo()
            assert run.network.weights.sha256() == before


@pytest.mark.mpi
def test_one_rank_that_was_asked_to_stop_stops_all(comm: MPI.Intracomm, grid_shapes: list[GridShape]) -> None:
    for shape in grid_shapes:
        with running(comm, on_grid(CONFIG, shape), made_splits()) as run:
            state, metrics = train_step(run.training, TrainState(), False)
            assert not metrics.stop
            _, metrics = train_step(run.training, state, comm.rank == comm.size - 1)
            assert metrics.stop
