"""The commands around training, and scripts that use LeptonModel, as users start them: with and without mpirun."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from training_job import ENVIRONMENT, SMALL, Job, Mpirun, Trainer

DIGITS_CLASSES = 10


@pytest.fixture
def job(train: Trainer) -> Job:
    return train(2, *SMALL, "--train.epochs", 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "lepton_mpi.train", *SMALL, "--train.steps", "2", "--run.dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


def run(mpirun: Mpirun, num_ranks: int, folder: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    return mpirun(num_ranks, "-m", "lepton_mpi", *argv, env=ENVIRONMENT, cwd=folder, timeout_s=60)


def test_train_is_a_command_too(mpirun: Mpirun, tmp_path: Path) -> None:
    result = run(mpirun, 2, tmp_path, "train", *SMALL, "--train.steps", 3, "--run.name", "mine")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())["step"] == 3
    text = run(mpirun, 2, tmp_path, "train", "--help").stdout
    assert text.count("usage: python -m lepton_mpi train [config.toml]") == 1


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_evaluate_finds_what_training_found(mpirun: Mpirun, job: Job, num_ranks: int) -> None:
    result = run(mpirun, num_ranks, job.folder.parent, "evaluate", job.folder, "--json")
    assert result.returncode == 0, result.stderr
    found, expected = json.loads(result.stdout), job.summary["eval"]
    losses = found.pop("loss"), expected.pop("loss")
    assert {name: found[name] for name in expected} == expected
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # a sum, which is rounded in the order of the ranks
    assert (found["step"], found["data"]) == (job.summary["step"], "digits (test)")


def test_evaluate_spreads_the_model_on_request(mpirun: Mpirun, job: Job) -> None:
    result = run(mpirun, 4, job.folder.parent, "evaluate", job.folder, "--grid.stages", 2, "--grid.shards", 2)
    assert result.returncode == 0, result.stderr
    assert f"accuracy   {job.summary['eval']['accuracy']:.4f}\n" in result.stdout
    table = result.stdout.splitlines()[-DIGITS_CLASSES:]
    assert [line.split()[0] for line in table] == [str(number) for number in range(DIGITS_CLASSES)]


def test_predictions_do_not_depend_on_ranks(mpirun: Mpirun, job: Job) -> None:
    alone = run(mpirun, 1, job.folder.parent, "predict", job.folder, "digits")
    assert alone.returncode == 0, alone.stderr
    together = run(mpirun, 3, job.folder.parent, "predict", job.folder, "digits", "--output", "o.csv")
    assert (together.returncode, together.stdout) == (0, ""), together.stderr
    lines, others = alone.stdout.splitlines(), (job.folder.parent / "o.csv").read_text().splitlines()
    assert len(lines) == 1 + 1797
    assert lines[0] == others[0] == "index,class,probability"
    assert [line.rsplit(",", 1)[0] for line in lines] == [line.rsplit(",", 1)[0] for line in others]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["evaluate", "nowhere"], "run folder nowhere: no such folder"),
        (["evaluate", "{run}", "--data.tset_path", "x"], "did you mean data.test_path?"),
        (["predict", "{run}", "nothing.npz"], "No such file or directory"),
        (["predict", "{run}", "digits", "--grid.data", "5"], "grid: data=5"),
        (["predict", "{run}", "digits", "--output", "no/o.csv"], "--output: cannot write no/o.csv"),
        (["evaluate", "{empty}"], "no checkpoint"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    mpirun: Mpirun, finished: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.toml").write_text((finished / "config.toml").read_text())
    result = run(mpirun, 2, tmp_path, *(word.format(run=finished, empty=empty) for word in argv))
    messages = [line for line in result.stderr.splitlines() if line.startswith("lepton_mpi: ")]
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert len(messages) == 1
    assert message in messages[0]
    assert "Traceback" not in result.stderr


def test_texts_are_printed_once(mpirun: Mpirun, tmp_path: Path) -> None:
    for argv, text in [(["--version"], "lepton_mpi "), (["--help"], "usage: "), (["evaluate", "--help"], "usage: ")]:
        result = run(mpirun, 2, tmp_path, *argv)
        assert (result.returncode, result.stdout.count(text)) == (0, 1), result.stderr


def test_a_reader_may_go_away(finished: Path) -> None:
    command = f"{sys.executable} -m lepton_mpi predict {finished} digits --probabilities | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("index,class,probability_0")
    assert result.stdout.splitlines()[1] == "0"
    assert result.stderr == ""


SCRIPT = """
    import sys
    from lepton_mpi import LeptonModel
    import numpy as np
    x, y = np.random.default_rng(0).random((64, 5)), np.arange(64) % 3
    model = LeptonModel(5, 3, 8, 2)
    model.fit(x, y, epochs=1)
"""


def run_script(mpirun: Mpirun, num_ranks: int, folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT) + end)
    return mpirun(num_ranks, "script.py", env=ENVIRONMENT, cwd=folder, timeout_s=60)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_script_runs_with_any_number_of_ranks(mpirun: Mpirun, tmp_path: Path, num_ranks: int) -> None:
    result = run_script(mpirun, num_ranks, tmp_path, "model.save('m')\nif model.rank == 0: print(model.num_ranks, model.epoch)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{num_ranks} 1"
    assert result.stdout.count("epoch 1: ") == 1
    prediction = run(mpirun, 1, tmp_path, "evaluate", "m")
    assert prediction.returncode == 2
    assert "trained on arrays" in prediction.stderr


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("if model.rank == 1: raise ValueError('here')\nmodel.predict(x)", "ValueError: here"),
        ("if model.rank == 1: sys.exit(3)\nmodel.predict(x)", "called predict"),
        ("if model.rank == 0: model.predict(x)", "called predict"),
        ("if model.rank == 1: model.predict(x[:, 1:])", "DataError: rank 1: x: expected shape (N, 5)"),
    ],
)
def test_no_rank_waits_for_one_that_failed(mpirun: Mpirun, tmp_path: Path, end: str, message: str) -> None:
    result = run_script(mpirun, 2, tmp_path, end)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" in result.stderr


def test_ranks_that_fail_alike_say_so_once(mpirun: Mpirun, tmp_path: Path) -> None:
    result = run_script(mpirun, 3, tmp_path, "model.predict(x[:, 1:])")
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "script.py" in result.stderr
    assert "DataError: x: expected shape (N, 5), found (64, 4)" in result.stderr
    assert "MPI_ABORT" not in result.stderr
