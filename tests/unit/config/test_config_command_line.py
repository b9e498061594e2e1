"""The command line: overrides, the file, switches, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_mpi.config.command_line import Arguments, build_config, load_config, parse_arguments
from lepton_mpi.config.schema import Config, OptimizerConfig, RunConfig, TrainConfig
from lepton_mpi.errors import ConfigError


@pytest.fixture
def my_toml(tmp_path: Path) -> str:
    path = tmp_path / "my.toml"
    path.write_text("[train]\nsteps = 7\nseed = 3\n[run]\nfresh = true\n")
    return str(path)


def test_no_arguments_give_the_defaults() -> None:
    assert parse_arguments([]) == Arguments(Config())


@pytest.mark.parametrize(
    "argv",
    [
        ["--train.steps", "9", "--optimizer.lr=0.5"],
        ["--optimizer.lr", "0.5", "--train.steps=9"],
        ["--train.steps", "4", "--optimizer.lr", "5e-1", "--train.steps", "9"],
    ],
)
def test_overrides_are_read_in_both_spellings_and_the_last_one_counts(argv: list[str]) -> None:
    assert load_config(argv) == Config(train=TrainConfig(steps=9), optimizer=OptimizerConfig(lr=0.5))


@pytest.mark.parametrize("position", [0, 2])
def test_overrides_win_over_the_file_wherever_it_stands(my_toml: str, position: int) -> None:
    argv = ["--train.steps", "9"]
    argv.insert(position, my_toml)
    assert load_config(argv) == Config(train=TrainConfig(steps=9, seed=3), run=RunConfig(fresh=True))


@pytest.mark.parametrize(
    ("argv", "fresh"),
    [
        (["--run.fresh"], True),
        (["--run.fresh", "true"], True),
        (["--run.fresh", "false"], False),
        (["--run.fresh=false"], False),
        (["--run.fresh", "--train.steps", "2"], True),
    ],
)
def test_booleans_may_stand_alone(argv: list[str], fresh: bool) -> None:
    assert load_config(argv).run.fresh is fresh


def test_a_file_after_a_bare_boolean_is_the_file(my_toml: str) -> None:
    assert load_config(["--run.fresh", my_toml]).train.steps == 7


def test_values_may_begin_with_a_dash_or_hold_an_equals_sign() -> None:
    config = load_config(["--data.max_shift", "-1", "--run.dir=a=b"])
    assert (config.data.max_shift, config.run.dir) == (-1, "a=b")
    assert load_config(["--run.dir=--odd"]).run.dir == "--odd"


def test_relative_paths_stay_as_they_were_given(my_toml: str) -> None:
    assert load_config([my_toml, "--run.dir", "here/run"]).run.dir == "here/run"


@pytest.mark.parametrize("switch", ["--help", "-h"])
def test_help_is_given_whatever_else_is_wrong(switch: str) -> None:
    assert parse_arguments(["missing.toml", "--no.such", switch]) == Arguments(Config(), help=True)


def test_print_config_is_recognised(my_toml: str) -> None:
    arguments = parse_arguments([my_toml, "--print-config"])
    assert arguments.print_config and not arguments.help and arguments.config.train.steps == 7


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.stepz", "5"], r"unknown key train\.stepz; did you mean train\.steps\?"),
        (["--train.stepz=5"], r"unknown key train\.stepz"),
        (["--trian.steps", "5"], r"unknown section 'trian'; did you mean train\.steps\?"),
        (["--steps", "5"], r"unknown section 'steps'; did you mean train\.steps\?"),
        (["--train", "5"], r"--train is a section: expected --train\.key value, keys are steps"),
        (["-x"], "unknown option '-x'"),
        (["--train.steps"], r"train\.steps: expected an integer of at least 0 after --train\.steps, got nothing"),
        (["--train.steps", "--run.fresh"], r"train\.steps: expected .* got nothing"),
        (["--train.steps", "many"], r"train\.steps: expected an integer of at least 0, got 'many'"),
        (["--run.fresh=yes"], r"run\.fresh: expected true or false, got 'yes'"),
        (["a.toml", "b.toml"], "at most one configuration file, got 'a.toml' and 'b.toml'"),
    ],
)
def test_what_cannot_be_read_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^command line: .*" + message):
        parse_arguments(argv)


def test_a_file_may_be_disallowed() -> None:
    with pytest.raises(ConfigError, match=r"unexpected argument 'a\.toml'"):
        load_config(["a.toml"], allow_positional=False)


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.min_lr"):
        load_config(["--optimizer.lr", "0.1", "--optimizer.min_lr", "0.2"])


def test_values_of_a_file_are_checked_even_where_an_override_wins(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[train]\nsteps = -1\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: train\.steps"):
        load_config([str(path), "--train.steps", "5"])


def test_build_config_keeps_defaults() -> None:
    assert build_config({}) == Config()
    assert build_config({"train": {"steps": 2}}) == Config(train=TrainConfig(steps=2))
