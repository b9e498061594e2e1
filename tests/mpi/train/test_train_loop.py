"""The training loop: epochs, evaluations, checkpoints, and where it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import configure, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.loop import EpochMetrics, Outcome, Watcher, train
from lepton_mpi.train.resume import load
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

# 50 samples in batches of 16: four steps an epoch, the last one of 2 samples.
CONFIG = configure(train={"steps": 9, "evaluate_every_epochs": 1}, checkpoint={"every_steps": 3, "driver": "direct"})


class Diary(Watcher):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[TrainState, StepMetrics]] = []
        self.epochs: list[tuple[EpochMetrics, TrainState]] = []
        self.checkpoints: list[str] = []

    def step_done(self, state: TrainState, metrics: StepMetrics, samples_per_second: float) -> None:
        self.steps.append((state, metrics))

    def epoch_done(self, metrics: EpochMetrics, state: TrainState) -> None:
        self.epochs.append((metrics, state))

    def checkpoint_done(self, path: Path) -> None:
        self.checkpoints.append(path.name)


def run_training(
    comm: MPI.Intracomm,
    config: Config,
    folder: Path | None = None,
    stop_at: int = -1,
    splits: DataSplits | None = None,
) -> tuple[Diary, Outcome]:
    """Train from the start; the last rank alone asks to stop before a step."""
    diary = Diary()
    with running(comm, config, splits or made_splits()) as run:
        outcome = train(run, TrainState(), folder, lambda: comm.rank == comm.size - 1 and len(diary.steps) == stop_at, diary)
    return diary, outcome


@pytest.mark.mpi
def test_a_run_from_start_to_end(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    for shape in grid_shapes:
        diary, outcome = run_training(comm, on_grid(CONFIG, shape), folder / str(shape))
        assert [state.step for state, _ in diary.steps] == list(range(1, 10))
        assert [m.num_samples for _, m in diary.steps] == [16, 16, 16, 2, 16, 16, 16, 2, 16]
        assert [(m.epoch, s.step) for m, s in diary.epochs] == [(1, 4), (2, 8)]
        first = [m for _, m in diary.steps[:4]]
        assert diary.epochs[0][0].loss == pytest.approx(sum(m.loss * m.num_samples for m in first) / 50)
        assert diary.epochs[0][0].accuracy == pytest.approx(sum(m.accuracy * m.num_samples for m in first) / 50)
        assert all(m.test is not None for m, _ in diary.epochs)
        assert diary.checkpoints == ["step-000000003", "step-000000006", "step-000000009"]  # the last one written once
        assert (outcome.state.step, outcome.state.epoch, outcome.state.position) == (9, 2, 16)
        assert not outcome.stopped
        assert outcome.train_loss == pytest.approx(diary.steps[-1][1].loss)  # of the third epoch so far
        assert outcome.test is not None
        assert outcome.samples_per_second > 0
        equal = (diary.epochs[0][0].loss, diary.checkpoints, outcome.state, outcome.test, outcome.train_loss)
        assert len(set(map(repr, comm.allgather(equal)))) == 1


@pytest.mark.mpi
def test_a_request_of_one_rank_stops_all_with_a_checkpoint(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    config = on_grid(CONFIG, grid_shapes[-1])
    diary, outcome = run_training(comm, config, folder, stop_at=4)
    assert outcome.stopped
    assert outcome.state.step == 5  # the step that the request came in is done
    assert diary.checkpoints == ["step-000000003", "step-000000005"]
    assert outcome.test is None  # who asks to stop waits for no evaluation
    with running(comm, config, made_splits()) as run:
        state, _ = load(run.network, folder / "step-000000005")
        rest = Diary()
        outcome = train(run, state, folder, lambda: False, rest)
        continued = run.network.weights.sha256()
    assert [s.step for s, _ in rest.steps] == [6, 7, 8, 9]
    with running(comm, config, made_splits()) as run:
        train(run, TrainState(), None, lambda: False, Watcher())
        assert run.network.weights.sha256() == continued


@pytest.mark.mpi
def test_a_request_in_the_last_step_is_no_interruption(comm: MPI.Intracomm, folder: Path) -> None:
    diary, outcome = run_training(comm, CONFIG, folder, stop_at=8)
    assert (outcome.stopped, outcome.state.step, len(diary.steps)) == (False, 9, 9)


@pytest.mark.mpi
def test_evaluation_only_at_the_end(comm: MPI.Intracomm) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, evaluate_every_epochs=0))
    diary, outcome = run_training(comm, config)
    assert [m.test for m, _ in diary.epochs] == [None, None]
    assert outcome.test is not None
    assert diary.checkpoints == []


@pytest.mark.mpi
def test_without_a_test_set_and_without_steps(comm: MPI.Intracomm, folder: Path) -> None:
    splits = made_splits()
    _, outcome = run_training(comm, CONFIG, splits=DataSplits(splits.train, made_splits(num_test=0).test))
    assert outcome.test is None
    with running(comm, CONFIG, splits) as run:
        done = TrainState(9, 2, 16)
        outcome = train(run, done, folder, lambda: False, Watcher())
        assert outcome.state == done
        assert math.isnan(outcome.train_loss)
        assert outcome.test is not None
        assert list(folder.iterdir()) == []  # nothing new to save
