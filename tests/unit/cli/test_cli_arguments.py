"""The arguments of evaluate and predict, and the configuration they give together with a run's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import lepton_mpi
from lepton_mpi.cli.arguments import EvaluateArguments, PredictArguments, read_arguments
from lepton_mpi.config.command_line import split_overrides
from lepton_mpi.config.schema import Config, DataConfig, GridConfig, ModelConfig
from lepton_mpi.config.toml_file import format_toml
from lepton_mpi.errors import ConfigError

STORED = Config(
    grid=GridConfig(data=2, stages=3, shards=1, ranks_per_node=2),
    model=ModelConfig(hidden_sizes=(8,)),
    data=DataConfig(format="csv", path="train.csv", label_column="kind"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(format_toml(STORED))
    return tmp_path


def evaluation(run: Path, *argv: str) -> EvaluateArguments:
    arguments = read_arguments(["evaluate", str(run), *argv])
    assert isinstance(arguments, EvaluateArguments)
    return arguments


def prediction(run: Path, *argv: str) -> PredictArguments:
    arguments = read_arguments(["predict", str(run), "x.npy", *argv])
    assert isinstance(arguments, PredictArguments)
    return arguments


def test_evaluate_takes_the_run_s_own_configuration_without_its_grid(run: Path) -> None:
    whole_model_on_each_rank = GridConfig(stages=1, shards=1)
    assert evaluation(run) == EvaluateArguments(run, replace(STORED, grid=whole_model_on_each_rank), json=False)


def test_overrides_stand_anywhere_in_both_spellings(run: Path) -> None:
    arguments = read_arguments(["evaluate", "--run.device", "gpu", str(run), "--data.test_fraction=0.5", "--json"])
    assert isinstance(arguments, EvaluateArguments)
    assert (arguments.run, arguments.json) == (run, True)
    assert (arguments.config.run.device, arguments.config.data.test_fraction) == ("gpu", 0.5)


def test_a_grid_on_the_command_line_leaves_the_other_sizes_open(run: Path) -> None:
    assert evaluation(run, "--grid.stages", "2").config.grid == GridConfig(stages=2)
    simulated_nodes = evaluation(run, "--grid.ranks_per_node", "1").config.grid
    assert simulated_nodes == GridConfig(stages=1, shards=1, ranks_per_node=1)


def test_a_test_file_takes_the_place_of_all_files_of_the_run(run: Path) -> None:
    data = evaluation(run, "--data.test_path", "t-idx", "--data.test_labels_path", "l-idx").config.data
    expected = DataConfig(
        format="", path="t-idx", labels_path="l-idx", test_path="t-idx", test_labels_path="l-idx", label_column="kind"
    )
    assert data == expected
    assert evaluation(run, "--data.test_path", "t", "--data.format", "npz").config.data.format == "npz"


@pytest.mark.parametrize("data_format", ["images", "movielens"])
def test_numbers_of_users_or_classes_stay_those_of_the_training_set(tmp_path: Path, data_format: str) -> None:
    stored = DataConfig(format=data_format, path="train")
    (tmp_path / "config.toml").write_text(format_toml(Config(data=stored)))
    assert evaluation(tmp_path, "--data.test_path", "t").config.data == replace(stored, test_path="t")
    other = evaluation(tmp_path, "--data.test_path", "t", "--data.format", "npz").config.data
    assert (other.format, other.path) == ("npz", "t")


@pytest.mark.parametrize("data_format", ["cifar10", "cifar100", "webdataset"])
def test_formats_without_a_mark_are_kept(tmp_path: Path, data_format: str) -> None:
    (tmp_path / "config.toml").write_text(format_toml(Config(data=DataConfig(format=data_format, path="train"))))
    data = evaluation(tmp_path, "--data.test_path", "t").config.data
    assert (data.format, data.path, data.test_path) == (data_format, "t", "t")


def test_predict_reads_its_options(run: Path) -> None:
    assert prediction(run) == PredictArguments(run, replace(STORED, grid=GridConfig(stages=1, shards=1)), "x.npy", "", None, False)
    arguments = prediction(run, "--output", "o.csv", "--format=npy", "--probabilities")
    assert (arguments.output, arguments.format, arguments.probabilities) == (Path("o.csv"), "npy", True)


@pytest.mark.parametrize(
    ("argv", "start"),
    [
        (["--help"], "usage: python -m lepton_mpi [-h]"),
        (["--version"], f"lepton_mpi {lepton_mpi.__version__}\n"),
        (["evaluate", "--help"], "usage: python -m lepton_mpi evaluate RUN"),
        (["predict", "nowhere", "-h", "--no.such"], "usage: python -m lepton_mpi predict RUN INPUT"),
    ],
)
def test_texts_are_returned_whatever_else_is_there(argv: list[str], start: str) -> None:
    text = read_arguments(argv)
    assert isinstance(text, str)
    assert text.startswith(start)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"required: COMMAND; see python -m lepton_mpi --help"),
        (["fly"], r"invalid choice: 'fly'"),
        (["evaluate"], r"required: RUN; see python -m lepton_mpi evaluate --help"),
        (["predict", "run"], r"required: INPUT"),
        (["evaluate", "run", "--jso"], r"unrecognized arguments: --jso"),
        (["evaluate", "run", "more"], r"unrecognized arguments: more"),
        (["predict", "run", "x", "--format", "png"], r"argument --format: invalid choice: 'png'"),
        (["predict", "run", "x", "--output"], r"argument --output: expected one argument"),
        (["evaluate", "run", "--data.no_such", "1"], r"unknown key data.no_such"),
        (["evaluate", "run", "--data.test_path"], r"data.test_path: expected a string after --data.test_path, got nothing"),
        (["--", "train"], r"expected train as the first argument|invalid choice: '--'"),
        (["evaluate", "no/such/run"], r"run folder no/such/run: no such folder"),
    ],
)
def test_bad_arguments_are_configuration_errors(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(argv)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config.toml"):
        evaluation(tmp_path)


def test_a_model_trained_on_arrays_needs_a_test_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(format_toml(Config(data=DataConfig(format="npy"))))
    with pytest.raises(ConfigError, match=r"has no test set of its own: give --data.test_path"):
        evaluation(tmp_path)
    assert evaluation(tmp_path, "--data.test_path", "t.csv").config.data.path == "t.csv"


def test_split_overrides_leaves_all_other_arguments_in_order() -> None:
    own, overrides = split_overrides(["a", "--run.fresh", "b", "--x=1.5", "--train.seed", "3", "-o", "--run.fresh", "false"])
    assert own == ["a", "b", "--x=1.5", "-o"]
    assert [(key.full_name, value) for key, value in overrides] == [("run.fresh", True), ("train.seed", 3), ("run.fresh", False)]
