"""Metrics that are no plain sums, and augmentation, are the same to a bit on every grid."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import configure, do_steps, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.monitor.binary_metrics import BinarySums
from lepton_mpi.monitor.metrics import Evaluation, MetricSums
from lepton_mpi.monitor.ranking_metrics import RankingSums
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train import inference
from lepton_mpi.train.inference import evaluate, predict
from lepton_mpi.train.objective import make_metrics
from lepton_mpi.train.state import TrainState

NUM_TRAIN, NUM_TEST, NUM_USERS, NUM_ITEMS = 20, 53, 9, 300


def split(inputs: NDArray[np.generic], labels: NDArray[np.generic] | None, num_classes: int = 0) -> DataSplits:
    parts = (slice(0, NUM_TRAIN), slice(NUM_TRAIN, None))
    train, test = (ArrayDataset("made", inputs[p], None if labels is None else labels[p], num_classes) for p in parts)
    return DataSplits(train, test)


def values(task: str) -> DataSplits:
    random, num = np.random.default_rng(1), NUM_TRAIN + NUM_TEST
    inputs = random.normal(size=(num, 7)).astype(np.float32)
    if task == "binary":
        return split(inputs, (inputs[:, :2] + random.normal(size=(num, 2)) > 0).astype(np.float32))
    return split(inputs, random.integers(0, 8, num), 8)


def pairs() -> DataSplits:
    random, num = np.random.default_rng(2), NUM_TRAIN + NUM_TEST
    ids = np.column_stack([random.integers(0, NUM_USERS, num), random.integers(0, NUM_ITEMS, num)])
    ids[0] = (NUM_USERS - 1, NUM_ITEMS - 1)
    return split(ids, None)


def images(task: str) -> DataSplits:
    random, num = np.random.default_rng(3), NUM_TRAIN + NUM_TEST
    labels = random.integers(0, 4, (num, 8, 8) if task == "segmentation" else num)
    return split(random.normal(size=(num, 3, 8, 8)).astype(np.float32), labels, 4)


DEEP, RANKING = (9, 8, 6), {"family": "recommender", "task": "ranking", "embedding_size": 4}
METRICS = {
    "binary": (configure(model={"task": "binary", "hidden_sizes": DEEP}, train={"metric": "auc"}), values("binary")),
    "classification": (configure(model={"hidden_sizes": DEEP}, train={"metric": "top5_accuracy"}), values("classification")),
    "ranking": (configure(model=RANKING | {"hidden_sizes": DEEP}, train={"metric": "ndcg_at_10"}), pairs()),
    "product": (configure(model=RANKING | {"interaction": "product"}, train={"metric": "hit_rate_at_10"}), pairs()),
    "few": (configure(model=RANKING | {"hidden_sizes": DEEP}, data={"ranking_candidates": 3}), pairs()),
}
AUGMENTED = {
    "mixup": (configure(data={"augment": ("flip", "crop:2", "cutout:3", "mixup:0.4")}, train={"label_smoothing": 0.1}), "classes"),
    "segmentation": (
        configure(model={"family": "unet", "depth": 2, "width": 4}, data={"augment": ("flip", "crop:2")}),
        "segmentation",
    ),
}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an evaluation take several batches, the last one short."""
    monkeypatch.setattr(inference, "_SAMPLES_PER_RANK", 5)


def judge(comm: MPI.Intracomm, config: Config, splits: DataSplits) -> tuple[Evaluation, NDArray[np.float32]]:
    """Return what an evaluation and a prediction find, the latter on rank 0 alone."""
    with running(comm, config, splits) as run:
        assert run.test_loader is not None
        assert make_metrics(run.network.model).choose(config.train.metric) == (config.train.metric or "pair_accuracy", True)
        found = evaluate(run.network, run.test_loader)
        return found, np.concatenate(list(predict(run.network, run.test_loader)))


@cache
def judged_alone(case: str) -> tuple[Evaluation, NDArray[np.float32]]:
    comm = MPI.COMM_SELF.Dup()
    found = judge(comm, on_grid(METRICS[case][0], GridShape(1, 1, 1)), METRICS[case][1])
    comm.Free()
    return found


@pytest.mark.mpi
@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("case", METRICS)
def test_metrics(comm: MPI.Intracomm, grid_shapes: list[GridShape], case: str) -> None:
    config, splits = METRICS[case]
    expected, scores = judged_alone(case)
    shapes = [shape for shape in grid_shapes if case != "product" or shape.stages < 3]
    for shape in shapes:
        found, predictions = judge(comm, on_grid(config, shape), splits)
        assert found.values.keys() == expected.values.keys()
        for name, value in found.values.items():
            assert value == (pytest.approx(expected.values[name], rel=1e-5) if name == "loss" else expected.values[name]), (
                shape,
                name,
            )
        assert len(set(map(repr, comm.allgather(found.values)))) == 1
        if comm.rank == 0:
            np.testing.assert_allclose(predictions, scores, rtol=1e-4, atol=1e-6)
    if case == "product":
        assert scores.shape == (NUM_TEST, 100)
    if case == "few":
        assert scores.shape == (NUM_TEST, 4) and expected.values["hit_rate_at_10"] == 1
    own = {"binary": BinarySums(2), "ranking": RankingSums(), "product": RankingSums(), "few": RankingSums()}.get(case)
    if own is not None:
        assert_follows(own, scores, splits, expected)


def assert_follows(sums: MetricSums, scores: NDArray[np.float32], splits: DataSplits, expected: Evaluation) -> None:
    """Check that metrics are those of the predictions of the whole test set."""
    outputs = scores if isinstance(sums, RankingSums) else np.log(scores) - np.log1p(-scores)
    sums.add(outputs, splits.test.read_labels(np.arange(NUM_TEST)).astype(np.float32))
    values = sums.evaluation(sums.totals, sums.rows).values
    assert values == pytest.approx(expected.values, rel=1e-4)
    assert 0.02 < expected.values["auc" if "auc" in values else "ndcg_at_10"] < 0.95  # neither all nor none


@cache
def losses_alone(case: str) -> list[float]:
    config, task = AUGMENTED[case]
    comm = MPI.COMM_SELF.Dup()
    with running(comm, on_grid(config, GridShape(1, 1, 1)), images(task)) as run:
        found = [metrics.loss for metrics in do_steps(run, TrainState(), 5)[1]]
    comm.Free()
    return found


@pytest.mark.mpi
@pytest.mark.parametrize("case", AUGMENTED)
def test_training_on_augmented_images(comm: MPI.Intracomm, grid_shapes: list[GridShape], case: str) -> None:
    config, task = AUGMENTED[case]
    expected = losses_alone(case)
    for shape in grid_shapes:
        with running(comm, on_grid(config, shape), images(task)) as run:
            found = [metrics.loss for metrics in do_steps(run, TrainState(), 5)[1]]
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=str(shape))
    plain = replace(config, data=replace(config.data, augment=()))
    with running(comm, plain, images(task)) as run:
        assert abs(do_steps(run, TrainState(), 1)[1][0].loss - expected[0]) > 1e-3
