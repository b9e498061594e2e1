"""LeptonModel on several ranks: the same results everywhere, on every grid, and the same errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.cli.arguments import EvaluateArguments, PredictArguments, read_arguments
from lepton_mpi.cli.evaluate import run_evaluate
from lepton_mpi.cli.predict import run_predict
from lepton_mpi.errors import CheckpointError, ConfigError, DataError, LeptonError, NonFiniteError, RankMismatchError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.uncaught import UncaughtErrorHook
from lepton_mpi.train.model import LeptonModel

pytestmark = pytest.mark.filterwarnings("ignore:the ranks start more threads")

RANDOM = np.random.default_rng(0)
Y = np.arange(151) % 3
X = RANDOM.normal(size=(3, 6))[Y] * 3 + RANDOM.normal(size=(151, 6)) + 5.0


def make(**more: Any) -> LeptonModel:
    return LeptonModel(6, 3, 16, 3, **{"batch_size": 25, "lr": 1e-2, **more})


def grids(num_ranks: int) -> list[dict[str, int]]:
    """Return all grids of so many ranks that a model of 3 layers fits."""
    sizes = [(s, h) for s in (1, 2, 3) for h in (1, 2, 3) if num_ranks % (s * h) == 0]
    return [{"data": num_ranks // (s * h), "stages": s, "shards": h} for s, h in sizes]


def test_all_ranks_get_the_same_on_every_grid(comm: MPI.Intracomm) -> None:
    reference = None
    for sizes in grids(comm.size):
        with make(**sizes) as model:
            history = model.fit(X, Y, epochs=3, validation_data=(X, Y), verbose=False)
            metrics, classes, probabilities = model.evaluate(X, Y), model.predict(X), model.predict_proba(X)
            assert (model.rank, model.num_ranks) == (comm.rank, comm.size)
        own = ([found.loss for found in history], metrics, classes.tolist(), probabilities.tobytes())
        assert all(other == own for other in comm.allgather(own))
        assert metrics.accuracy == np.mean(classes == Y) > 0.9
        assert history[-1].test is not None
        assert history[-1].test.classification == metrics
        reference = probabilities if reference is None else reference
        assert np.allclose(probabilities, reference, atol=2e-3)


def test_fewer_samples_than_ranks(comm: MPI.Intracomm) -> None:
    with make(data=comm.size) as model:
        model.fit(X[:2], Y[:2], epochs=2, verbose=False)
        assert model.predict_proba(X[:1]).shape == (1, 3)
        assert model.evaluate(X[:1], Y[:1]).per_class[0].support == 1


def test_what_one_grid_saves_another_goes_on_from(comm: MPI.Intracomm, folder: Path) -> None:
    with make(data=comm.size) as model:
        model.fit(X, Y, epochs=2, verbose=False)
        model.save(folder / "m" if comm.rank == 0 else "elsewhere")  # rank 0's counts
        expected = model.predict_proba(X)
        continued = model.fit(X, Y, epochs=1, verbose=False)
    for sizes in grids(comm.size):
        with make(**sizes) as model:
            model.load(folder / "m" if comm.rank == 0 else "elsewhere")
            assert np.allclose(model.predict_proba(X), expected, atol=1e-6)
            assert model.fit(X, Y, epochs=1, verbose=False)[0].loss == pytest.approx(continued[0].loss, rel=1e-3)


def test_only_rank_0_shows_epochs(comm: MPI.Intracomm, capsys: pytest.CaptureFixture[str]) -> None:
    with make() as model:
        model.fit(X, Y, epochs=2)
    assert capsys.readouterr().out.count("epoch ") == (2 if comm.rank == 0 else 0)


@pytest.mark.mpi(min_size=2)
def test_different_arguments_are_found_out(comm: MPI.Intracomm) -> None:
    last = comm.rank == comm.size - 1
    with pytest.raises(RankMismatchError, match=r"seed=0.*but rank \d called LeptonModel\(.*seed=1"):
        make(seed=int(last))
    changed = X.copy()
    changed[77, 3] += last
    with make() as model:
        with pytest.raises(RankMismatchError, match=r"rank 0 called fit\(x of float64 \(151, 6\) and CRC-32"):
            model.fit(changed, Y)
        with pytest.raises(RankMismatchError, match=r"rank 0 called fit"):
            model.fit(X, (Y + last) % 3)
        with pytest.raises(RankMismatchError, match=r"epochs=2.*epochs=1"):
            model.fit(X, Y, epochs=1 if last else 2)
        model.fit(X, Y, epochs=1, verbose=False)
        with pytest.raises(RankMismatchError, match=r"rank 0 called predict.*called evaluate"):
            model.evaluate(X, Y) if last else model.predict(X)
        assert model.evaluate(X, Y).accuracy > 0.3  # nothing is lost


@pytest.mark.mpi(min_size=2)
def test_closing_while_others_work_is_found_out(comm: MPI.Intracomm) -> None:
    model = make()
    model.fit(X, Y, epochs=1, verbose=False)
    with pytest.raises(RankMismatchError, match=r"called evaluate.*called close\(\)|called close\(\).*called evaluate"):
        model.close() if comm.rank == 1 else model.evaluate(X, Y)
    model.close()


@pytest.mark.mpi(min_size=2)
def test_an_error_of_one_rank_is_raised_on_all(comm: MPI.Intracomm) -> None:
    bad = comm.rank == 1
    with pytest.raises(ConfigError, match=r"rank 1: LeptonModel: optimizer.name"):
        make(optimizer="adam" if bad else "sgd")
    with make() as model, pytest.raises(DataError, match=r"rank 1: x: expected shape \(N, 6\), found \(151, 5\)"):
        model.fit(X[:, :5] if bad else X, Y)


def test_errors_come_on_all_ranks_alike(comm: MPI.Intracomm, folder: Path) -> None:
    with make(normalise="none") as model:
        with pytest.raises(LeptonError, match=r"learnt nothing"):
            model.save(folder)
        with pytest.raises(CheckpointError, match=r"no checkpoint found"):
            model.load(folder)
        model.fit(X, Y, epochs=1, verbose=False)
        comm.Barrier()
        if comm.rank == 0:
            (folder / "metrics.jsonl").touch()
        comm.Barrier()
        with pytest.raises(CheckpointError, match=r"is the folder of a training run"):
            model.save(folder)
        with pytest.raises(NonFiniteError):
            model.fit(np.full_like(X, np.inf), Y)


@pytest.mark.mpi(min_size=2)
def test_the_hook_for_uncaught_errors_is_set_once(comm: MPI.Intracomm) -> None:
    make().close()
    hook = sys.excepthook
    assert isinstance(hook, UncaughtErrorHook)
    make().close()
    assert sys.excepthook is hook


def test_the_commands_give_the_same_on_every_grid(comm: MPI.Intracomm, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        model.save(folder)
        expected = model.predict(X)
    if comm.rank == 0:
        np.savez(folder / "d.npz", x=X, y=Y)
    comm.Barrier()
    for sizes in [{}, *grids(comm.size)]:
        options = [text for name, size in sizes.items() for text in (f"--grid.{name}", str(size))]
        evaluation = read_arguments(["evaluate", str(folder), "--data.test_path", str(folder / "d.npz"), *options])
        assert isinstance(evaluation, EvaluateArguments)
        run_evaluate(comm, evaluation)
        text = capsys.readouterr().out
        assert (f"accuracy   {np.mean(expected == Y):.4f}\n" in text) if comm.rank == 0 else text == ""
        prediction = read_arguments(["predict", str(folder), str(folder / "d.npz"), *options])
        assert isinstance(prediction, PredictArguments)
        run_predict(comm, prediction)
        lines = capsys.readouterr().out.splitlines()
        classes = [int(line.split(",")[1]) for line in lines[1:]]
        assert classes == (expected.tolist() if comm.rank == 0 else [])
        with pytest.raises(ConfigError, match=r"--output: cannot write"):
            output = str(folder / "no" / "o.csv")
            failing = read_arguments(["predict", str(folder), str(folder / "d.npz"), "--output", output])
            assert isinstance(failing, PredictArguments)
            run_predict(comm, failing)


@pytest.mark.mpi(min_size=2)
def test_a_rank_with_other_data_is_named(comm: MPI.Intracomm, folder: Path, tmp_path: Path) -> None:
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        model.save(folder)
    np.savez(tmp_path / f"{comm.rank}.npz", x=X[: 100 + comm.rank], y=Y[: 100 + comm.rank])
    arguments = read_arguments(["predict", str(folder), str(tmp_path / f"{comm.rank}.npz")])
    assert isinstance(arguments, PredictArguments)
    with pytest.raises(RankMismatchError, match=r"0.npz: 100 samples .*but rank 1 opened 1.npz: 101 samples"):
        run_predict(comm, arguments)
