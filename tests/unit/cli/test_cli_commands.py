"""evaluate and predict in one process: every format in, text, JSON and CSV out, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.cli.arguments import EvaluateArguments, PredictArguments, read_arguments
from lepton_mpi.cli.evaluate import run_evaluate
from lepton_mpi.cli.predict import run_predict
from lepton_mpi.errors import CheckpointError, ConfigError, DataError, GridError
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.runtime.mpi import start_mpi
from lepton_mpi.train.model import LeptonModel

RANDOM = np.random.default_rng(1)
Y = np.arange(30) % 3
X = (Y[:, None, None] * 60 + RANDOM.integers(0, 50, (30, 2, 2))).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Give a folder with a model of samples (2, 2), and its probabilities for X."""
    folder = tmp_path_factory.mktemp("trained")
    with LeptonModel((2, 2), 3, 8, 2, lr=0.05, batch_size=10) as model:
        model.fit(X, Y, epochs=5, verbose=False)
        model.save(folder)
        return folder, model.predict_proba(X)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Hold X in every format, labelled where the format allows."""
    header = bytes([0, 0, 8, 3]) + np.array(X.shape, ">u4").tobytes()
    (tmp_path / "x-idx3-ubyte").write_bytes(header + X.tobytes())
    (tmp_path / "y-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array(Y.shape, ">u4").tobytes() + Y.astype(np.uint8).tobytes())
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    rows = [[*row, label] for row, label in zip(X.reshape(30, 4).tolist(), Y.tolist(), strict=True)]
    for name, columns in (("d.csv", 5), ("u.csv", 4)):
        lines = [["a", "b", "c", "d", "label"], *rows]
        (tmp_path / name).write_text("\n".join(",".join(map(str, line[:columns])) for line in lines) + "\n")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["y"] = X, Y
    return tmp_path


def evaluate(run: Path, *argv: object) -> None:
    arguments = read_arguments(["evaluate", str(run), *map(str, argv)])
    assert isinstance(arguments, EvaluateArguments)
    run_evaluate(start_mpi().Dup(), arguments)


def predict(run: Path, *argv: object) -> None:
    arguments = read_arguments(["predict", str(run), *map(str, argv)])
    assert isinstance(arguments, PredictArguments)
    run_predict(start_mpi().Dup(), arguments)


def read_csv(text: str) -> tuple[list[str], np.ndarray]:
    header, *rows = csv.reader(io.StringIO(text))
    return header, np.array(rows, np.float64)


@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x.npy", "d.npz", "d.csv", "u.csv", "d.h5"])
def test_predictions_are_those_of_the_model(
    trained: tuple[Path, np.ndarray], files: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, probabilities = trained
    predict(run, files / name)
    header, rows = read_csv(capsys.readouterr().out)
    assert header == ["index", "class", "probability"]
    assert rows[:, 0].tolist() == list(range(30))
    assert rows[:, 1].tolist() == probabilities.argmax(axis=1).tolist()
    assert np.allclose(rows[:, 2], probabilities.max(axis=1), atol=1e-5)


def test_all_probabilities_go_to_a_file(trained: tuple[Path, np.ndarray], files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, probabilities = trained
    (files / "o.csv").write_text("old")
    predict(run, files / "d.npz", "--probabilities", "--output", files / "o.csv", "--format", "npz")
    assert capsys.readouterr().out == ""
    header, rows = read_csv((files / "o.csv").read_text())
    assert header == ["index", "class", "probability_0", "probability_1", "probability_2"]
    assert np.allclose(rows[:, 2:], probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ["d.npz", "d.csv", "d.h5"])
def test_evaluation_of_another_test_set(
    trained: tuple[Path, np.ndarray], files: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, probabilities = trained
    evaluate(run, "--data.test_path", files / name, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == np.mean(probabilities.argmax(axis=1) == Y)
    assert (result["data"], result["num_samples"], result["epoch"]) == (name, 30, 5)
    assert [found["support"] for found in result["per_class"]] == [10, 10, 10]


def test_evaluation_with_labels_in_a_file_of_their_own(
    trained: tuple[Path, np.ndarray], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, probabilities = trained
    evaluate(run, "--data.test_path", files / "x-idx3-ubyte", "--data.test_labels_path", files / "y-idx1-ubyte")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run        {run}, step-000000015"
    assert lines[2] == f"accuracy   {np.mean(probabilities.argmax(axis=1) == Y):.4f}"
    assert [line.split()[0] for line in lines[2:7]] == ["accuracy", "precision", "recall", "f1", "loss"]
    assert [line.split()[0] for line in lines[8:]] == ["class", "0", "1", "2"]
    assert {len(line) for line in lines[8:]} == {53}


def test_confusion_matrix(trained: tuple[Path, np.ndarray], files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, probabilities = trained
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (Y, probabilities.argmax(axis=1)), 1)
    evaluate(run, "--data.test_path", files / "d.npz", "--json", "--confusion")
    assert json.loads(capsys.readouterr().out)["confusion"] == counts.tolist()
    evaluate(run, "--data.test_path", files / "d.npz", "--confusion")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert lines == [["taken", "for", "0", "1", "2"], *(["class", str(c), *map(str, row)] for c, row in enumerate(counts))]
    evaluate(run, "--data.test_path", files / "d.npz", "--json")
    assert "confusion" not in json.loads(capsys.readouterr().out)


def test_confusion_matrix_of_a_task_without_classes(
    trained: tuple[Path, np.ndarray], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton_mpi.cli.evaluate.evaluate_together", lambda models, dataset: Evaluation({"rmse": 1.0}))
    with pytest.raises(ConfigError, match="--confusion: the task classification has no confusion matrix"):
        evaluate(trained[0], "--data.test_path", files / "d.npz", "--confusion")


def test_labels_that_are_needed_and_not_given(trained: tuple[Path, np.ndarray], files: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.labels_path: data.format npy keeps labels in a file of their own"):
        evaluate(trained[0], "--data.test_path", files / "x.npy")
    with pytest.raises(DataError, match=r"expected a column 'label'"):
        evaluate(trained[0], "--data.test_path", files / "u.csv")


def test_labels_beyond_the_classes_of_the_model(trained: tuple[Path, np.ndarray], files: Path) -> None:
    np.savez(files / "d.npz", x=X, y=Y + 1)
    with pytest.raises(DataError, match=r"expected an integer label 0 .. 2 \(3 classes\), found '3'"):
        evaluate(trained[0], "--data.test_path", files / "d.npz")


def test_samples_of_another_shape(trained: tuple[Path, np.ndarray], files: Path) -> None:
    np.save(files / "x.npy", np.zeros((5, 4, 2)))
    message = r"x.npy: the model takes samples of shape \(2, 2\), or flat ones of 4 values, found \(4, 2\)"
    with pytest.raises(DataError, match=message):
        predict(trained[0], files / "x.npy")
    np.savez(files / "d.npz", x=np.zeros((5, 4, 1)), y=np.zeros(5, int))  # as many values, in another shape
    with pytest.raises(DataError, match=r"found \(4, 1\)"):
        evaluate(trained[0], "--data.test_path", files / "d.npz")


def test_files_that_cannot_be_read(trained: tuple[Path, np.ndarray], files: Path) -> None:
    (files / "notes").write_text("hello")
    with pytest.raises(DataError, match=r"give --data.format"):
        evaluate(trained[0], "--data.test_path", files / "notes")
    with pytest.raises(DataError, match=r"no.npz'.*No such file"):
        evaluate(trained[0], "--data.test_path", files / "no.npz")
    with pytest.raises(DataError, match=r"found neither their magic number nor name"):
        predict(trained[0], files / "notes")


def test_an_empty_test_set(trained: tuple[Path, np.ndarray], files: Path) -> None:
    with pytest.raises(DataError, match=r"found none \(data.test_fraction is 0\): give --data.test_path"):
        evaluate(trained[0], "--data.format", "npz", "--data.path", files / "d.npz", "--data.test_fraction", "0")


def test_an_output_that_cannot_be_made(trained: tuple[Path, np.ndarray], files: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output: cannot write"):
        predict(trained[0], files / "d.npz", "--output", files / "no" / "o.csv")
    assert not (files / "no").exists()


def test_a_disk_that_fills_up_leaves_the_old_output(
    trained: tuple[Path, np.ndarray], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    (files / "o.csv").write_text("old")
    with pytest.raises(Exception, match=r"cannot write .*o.csv: No space left on device"):
        predict(trained[0], files / "d.npz", "--output", files / "o.csv")
    assert (files / "o.csv").read_text() == "old"
    assert not list(files.glob(".o.csv*"))


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away(trained: tuple[Path, np.ndarray], files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", _Gone())
    with pytest.raises(BrokenPipeError):
        predict(trained[0], files / "d.npz")


def test_runs_without_a_usable_checkpoint(trained: tuple[Path, np.ndarray], files: Path) -> None:
    run = files / "run"
    shutil.copytree(trained[0], run)
    data = next((run / "checkpoints").glob("step-*")) / "data.h5"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"none of the 1 checkpoints can be used"):
        predict(run, files / "d.npz")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: train first"):
        evaluate(run, "--data.test_path", files / "d.npz")


def test_a_checkpoint_of_something_else(trained: tuple[Path, np.ndarray], files: Path) -> None:
    run = files / "run"
    shutil.copytree(trained[0], run)
    write_checkpoint(start_mpi().Dup(), run / "checkpoints", 99, [], {"num_classes": 3})
    with pytest.raises(CheckpointError, match=r"step 99 does not say the data_shape .*KeyError\('data_shape'\)"):
        predict(run, files / "d.npz")


def test_settings_that_do_not_fit_the_checkpoint(trained: tuple[Path, np.ndarray], files: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor /param/layers.0.bias: the model has shape \(9,\)"):
        predict(trained[0], files / "d.npz", "--model.hidden_sizes", "9")
    with pytest.raises(GridError, match=r"does not fit 1 rank"):
        predict(trained[0], files / "d.npz", "--grid.stages", "2")


def test_the_digits_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with LeptonModel((8, 8), 10, 4, 2) as model:
        model.fit(np.ones((20, 8, 8)) * np.arange(20)[:, None, None], np.arange(20) % 10, epochs=1, verbose=False)
        model.save("run")
    predict(Path("run"), "digits")
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1797
    np.savez("digits", x=np.zeros((2, 64)))
    Path("digits.npz").rename("digits")
    predict(Path("run"), "digits")  # a file of that name goes before
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2
