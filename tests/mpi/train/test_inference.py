"""Evaluation and prediction agree with plain NumPy on every grid."""

from __future__ import annotations

import numpy as np
import pytest
from plain_training import initial_weights, probabilities
from small_runs import NUM_CLASSES, configure, do_steps, made_data, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.normalisation import measure_normalisation
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train import inference
from lepton_mpi.train.inference import evaluate, inference_loader, predict
from lepton_mpi.train.state import TrainState


def expected_probabilities(splits: DataSplits, dataset: ArrayDataset) -> np.ndarray:
    config = configure()
    normalisation = measure_normalisation(splits.train, config.data.normalise, MPI.COMM_SELF)
    inputs = normalisation.apply(dataset.read_inputs(np.arange(dataset.num_samples)))
    return probabilities(initial_weights(config, splits.train), inputs.astype(np.float64))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an evaluation take several batches, the last one short."""
    monkeypatch.setattr(inference, "_SAMPLES_PER_RANK", 5)


@pytest.mark.mpi
@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("num_test", [1, 2, 37])
def test_evaluation_counts_every_sample_once(comm: MPI.Intracomm, grid_shapes: list[GridShape], num_test: int) -> None:
    splits = made_splits()
    splits = DataSplits(splits.train, made_data(max(num_test, NUM_CLASSES), 3) if num_test > 2 else first_of(splits, num_test))
    shares = expected_probabilities(splits, splits.test)
    labels = splits.test.read_labels(np.arange(splits.test.num_samples))
    hits = shares.argmax(axis=1) == labels
    for shape in grid_shapes:
        with running(comm, on_grid(configure(), shape), splits) as run:
            assert run.test_loader is not None
            found = evaluate(run.network, run.test_loader)
            assert found.classification is not None
            per_class = found.classification.per_class
            assert found.values["accuracy"] == pytest.approx(hits.mean(), abs=1e-12), shape
            assert [c.support for c in per_class] == np.bincount(labels, minlength=NUM_CLASSES).tolist()
            assert [c.recall for c in per_class] == pytest.approx(
                [hits[labels == c].mean() if (labels == c).any() else 0.0 for c in range(NUM_CLASSES)]
            )
            assert len(set(map(repr, comm.allgather(found)))) == 1


def first_of(splits: DataSplits, count: int) -> ArrayDataset:
    inputs, labels = splits.test.read(np.arange(count))
    return ArrayDataset("few", inputs, labels, NUM_CLASSES)


@pytest.mark.mpi
@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_are_in_the_order_of_the_samples(comm: MPI.Intracomm, grid_shapes: list[GridShape], labelled: bool) -> None:
    splits = made_splits()
    inputs, labels = splits.test.read(np.arange(splits.test.num_samples))
    dataset = ArrayDataset("asked", inputs, labels if labelled else None, NUM_CLASSES)
    expected = expected_probabilities(splits, dataset)
    for shape in grid_shapes:
        with running(comm, on_grid(configure(), shape), splits) as run:
            found = np.concatenate(list(predict(run.network, inference_loader(run.network, dataset, run.normalisation))))
            if comm.rank:
                assert found.shape == (0, NUM_CLASSES)
                continue
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7, err_msg=str(shape))
            np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.mpi
def test_inference_leaves_training_as_it_was(comm: MPI.Intracomm, grid_shapes: list[GridShape]) -> None:
    for shape in grid_shapes:
        digests = []
        for evaluating in (False, True):
            with running(comm, on_grid(configure(), shape), made_splits()) as run:
                state, _ = do_steps(run, TrainState(), 2)
                if evaluating:
                    assert run.test_loader is not None
                    evaluate(run.network, run.test_loader)
                do_steps(run, state, 2)
                digests.append(run.network.weights.sha256())
        assert digests[0] == digests[1], shape
