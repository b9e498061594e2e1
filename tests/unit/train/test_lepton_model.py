"""LeptonModel in one process: what it learns, keeps and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.errors import CheckpointError, ConfigError, DataError, GridError, LeptonError, NonFiniteError
from lepton_mpi.train.model import LeptonModel

RANDOM = np.random.default_rng(0)
CENTRES = RANDOM.normal(size=(3, 6)) * 3
Y = np.arange(150) % 3
X = CENTRES[Y] + RANDOM.normal(size=(150, 6)) + 5.0


def make(**more: Any) -> LeptonModel:
    return LeptonModel(6, 3, 16, 2, **{"batch_size": 25, **more})


def test_it_learns_and_its_methods_agree() -> None:
    with make(lr=1e-2) as model:
        history = model.fit(X, Y, epochs=8, validation_data=(X[:50], Y[:50]), verbose=False)
        metrics = model.evaluate(X, Y)
        classes, probabilities = model.predict(X), model.predict_proba(X)
    assert [found.epoch for found in history] == list(range(1, 9))
    assert history[-1].loss < 0.2 * history[0].loss
    assert history[-1].test is not None
    assert history[-1].test.values["accuracy"] > 0.95
    assert metrics.accuracy == np.mean(classes == Y) > 0.95
    assert min(metrics.precision, metrics.recall, metrics.f1) > 0.9
    assert classes.dtype == np.int64
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (150, 3)
    assert np.array_equal(probabilities.argmax(axis=1), classes)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_fit_goes_on_where_it_ended() -> None:
    with make() as whole, make() as parts:
        history = whole.fit(X, Y, epochs=3, verbose=False)
        continued = parts.fit(X, Y, epochs=1, verbose=False) + parts.fit(X, Y, epochs=2, verbose=False)
        assert parts.epoch == 3
        assert [found.loss for found in continued] == [found.loss for found in history]
        assert np.array_equal(whole.predict_proba(X), parts.predict_proba(X))


def test_normalisation_is_that_of_the_first_fit() -> None:
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        before = model.predict_proba(X)
        model.fit(X * 0 + 1e-3, Y, epochs=1, verbose=False)
        assert np.allclose(before, model.predict_proba(X), atol=0.2)  # measured again, X would be far away


def test_layers_are_counted_with_the_output_layer() -> None:
    with LeptonModel(6, 3, 16, 1) as model:
        assert model.fit(X, Y, epochs=2, verbose=False)[-1].loss < 1.5
    with LeptonModel((2, 3), 3, 16, 3) as model:
        model.fit(X.reshape(-1, 2, 3), Y[:, None], epochs=1, verbose=False)
        assert model.predict(X.reshape(-1, 2, 3)[:1]).shape == (1,)


def test_any_real_arrays_are_taken() -> None:
    with make(seed=np.int64(3), lr=np.float32(1e-3)) as model:
        model.fit(X.astype(np.int16).tolist(), Y.astype(np.float32), epochs=1, verbose=False)
        assert model.predict(np.asfortranarray(X[::2])).shape == (75,)


def test_epochs_are_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        assert capsys.readouterr().out == ""
        model.fit(X, Y, epochs=2, validation_data=[X, Y])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 3: loss ")
    assert "test accuracy" in lines[1]


def test_saved_models_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    with make() as model, make(seed=1) as other:
        model.fit(X, Y, epochs=1, verbose=False)
        model.save(tmp_path / "m")
        other.load(str(tmp_path / "m"))
        assert other.epoch == 1
        assert np.array_equal(model.predict_proba(X), other.predict_proba(X))
    with make() as again:
        again.load(tmp_path / "m")
        resumed = again.fit(X, Y, epochs=2, verbose=False)
    with make() as whole:
        assert [found.loss for found in resumed] == [found.loss for found in whole.fit(X, Y, epochs=3, verbose=False)[1:]]


def test_save_replaces_what_an_earlier_save_left(tmp_path: Path) -> None:
    with make() as older, make(seed=1) as younger:
        older.fit(X, Y, epochs=3, verbose=False)
        older.save(tmp_path)
        younger.fit(X, Y, epochs=1, verbose=False)
        younger.save(tmp_path)
        older.load(tmp_path)
        assert older.epoch == 1
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-000000006"]


def test_save_spares_training_runs(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        with pytest.raises(CheckpointError, match=r"is the folder of a training run"):
            model.save(tmp_path)


def test_save_says_what_it_could_not_write(tmp_path: Path) -> None:
    with make() as model:
        model.fit(X, Y, epochs=1, verbose=False)
        (tmp_path / "config.toml").mkdir()
        with pytest.raises(CheckpointError, match=r"cannot complete .*config.toml"):
            model.save(tmp_path)


def test_load_refuses_other_models(tmp_path: Path) -> None:
    with make() as model:
        with pytest.raises(CheckpointError, match=r"no checkpoint found in .*checkpoints"):
            model.load(tmp_path)
        model.fit(X, Y, epochs=1, verbose=False)
        model.save(tmp_path)
    for other, message in [
        (LeptonModel((2, 3), 3, 16, 2), r"this model has input shape \(2, 3\) and 3 classes, the checkpoint \(6,\) and 3"),
        (LeptonModel(6, 3, 17, 2), r"tensor /param/.*: the model has"),
        (make(optimizer="sgd"), r"tensor /opt/.*: the model has no such tensor"),
    ]:
        with other, pytest.raises(CheckpointError, match=message):
            other.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": ()}, r"input_shape: expected at least one dim"),
        ({"input_shape": (3, 0)}, r"input_shape: expected an integer of at least 1, got 0"),
        ({"input_shape": "6"}, r"input_shape: expected an integer of at least 1, got '6'"),
        ({"num_classes": 1}, r"num_classes: expected an integer of at least 2, got 1"),
        ({"hidden_size": 0}, r"model.hidden_sizes: expected a list of integers of at least 1"),
        ({"num_layers": 0}, r"num_layers: expected an integer of at least 1, got 0"),
        ({"num_layers": 2.0}, r"num_layers: expected an integer of at least 1, got 2.0"),
        ({"optimizer": "adam"}, r"optimizer.name: expected one of sgd, adamw, lamb, onebit_adam, got 'adam'"),
        ({"lr": "0.1"}, r"optimizer.lr: expected a number"),
        ({"batch_size": 0}, r"train.global_batch: expected an integer of at least 1"),
        ({"normalise": "all"}, r"data.normalise: expected one of"),
        ({"device": "tpu"}, r"run.device: expected one of cpu, gpu"),
        ({"reduce": "fp8"}, r"reduce.mode: expected one of"),
        ({"data": 9, "batch_size": 8}, r"train.global_batch: expected at least 9 samples"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LeptonModel(**{"input_shape": 6, "num_classes": 3, "hidden_size": 16, "num_layers": 2, **arguments})


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(GridError, match=r"at most 2 stages"):
        make(stages=3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :5], Y, r"x: expected shape \(N, 6\), found \(150, 5\)"),
        (X[0], Y[:1], r"x: expected inputs of shape \(samples, features...\)"),
        (X[:0], Y[:0], r"x: expected inputs of shape"),
        (X.astype(str), Y, r"x: expected real numbers"),
        ([[1.0], [2.0, 3.0]], Y, r"x: expected an array, got a list that makes none"),
        (X, Y[:-1], r"y: expected 150 labels"),
        (X, Y + 1, r"y, sample 2: expected an integer label 0 .. 2 \(3 classes\), found '3'"),
        (X, Y - 0.5, r"y, sample 0: expected an integer label"),
        (X, None, r"y: expected integer labels, found elements of type object"),
        (np.where(X > 8, np.nan, X), Y, r"x, sample \d+: expected finite inputs"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: Any, y: Any, message: str) -> None:
    with make() as model:
        with pytest.raises(DataError, match=message):
            model.fit(x, y, verbose=False)
        model.fit(X, Y, epochs=1, verbose=False)  # nothing is lost


def test_other_arguments_of_fit_are_checked() -> None:
    with make() as model:
        with pytest.raises(ConfigError, match=r"epochs: expected an integer of at least 1, got 0"):
            model.fit(X, Y, epochs=0)
        with pytest.raises(DataError, match=r"validation_data: expected a pair \(x, y\), got a ndarray"):
            model.fit(X, Y, validation_data=X)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"validation_data: y: expected 150 labels"):
            model.fit(X, Y, validation_data=(X, Y[:3]))


def test_nothing_can_be_asked_of_a_model_that_learnt_nothing(tmp_path: Path) -> None:
    with make() as model:
        for ask in (lambda: model.predict(X), lambda: model.evaluate(X, Y), lambda: model.save(tmp_path)):
            with pytest.raises(LeptonError, match=r"has learnt nothing yet: call fit or load first"):
                ask()


def test_a_closed_model_says_so() -> None:
    model = make()
    model.close()
    model.close()
    with pytest.raises(LeptonError, match=r"this LeptonModel is closed"):
        model.fit(X, Y)


def test_after_a_diverged_step_the_model_predicts_but_trains_no_further() -> None:
    with make(normalise="none") as model:
        model.fit(X, Y, epochs=1, verbose=False)
        before = model.predict_proba(X)
        with pytest.raises(NonFiniteError):
            model.fit(np.full_like(X, np.inf), Y, verbose=False)
        assert np.array_equal(model.predict_proba(X), before)
        with pytest.raises(LeptonError, match=r"last fit ended within a step"):
            model.fit(X, Y)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | environment
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)


def test_importing_the_package_imports_neither_numpy_nor_mpi() -> None:
    code = "import sys, lepton_mpi; print(lepton_mpi.__version__, {'numpy', 'mpi4py', 'h5py'} & set(sys.modules))"
    assert run_python(code).stdout.split()[1:] == ["set()"]


def test_importing_the_model_limits_threads_before_numpy_is_loaded() -> None:
    code = "from lepton_mpi import LeptonModel; import os; print(LeptonModel.__name__, os.environ['OPENBLAS_NUM_THREADS'])"
    assert run_python(code, OMPI_COMM_WORLD_LOCAL_SIZE="1000").stdout.split() == ["LeptonModel", "1"]


def test_threads_that_nobody_limited_are_warned_of() -> None:
    code = "import numpy; from lepton_mpi import LeptonModel; LeptonModel(2, 2, 2, 1).close()"
    assert "more threads for linear algebra than there are cores" in run_python(code, MV2_COMM_WORLD_LOCAL_SIZE="1000").stderr
    assert "threads" not in run_python(code, MV2_COMM_WORLD_LOCAL_SIZE="1000", OMP_NUM_THREADS="1").stderr


def test_the_package_has_no_other_attribute() -> None:
    import lepton_mpi

    with pytest.raises(AttributeError, match=r"module 'lepton_mpi' has no attribute 'nothing'"):
        lepton_mpi.nothing  # type: ignore[attr-defined]  # noqa: B018
