"""Sizes and numbers of the command `bench`."""

from __future__ import annotations

import pytest

from lepton_mpi.cli.arguments import read_arguments
from lepton_mpi.cli.bench_arguments import AUTO, CODECS, BenchArguments, parse_sizes
from lepton_mpi.compress.modes import MODES
from lepton_mpi.config.keys import list_keys
from lepton_mpi.errors import ConfigError


def test_sizes() -> None:
    assert parse_sizes(["4KB", "100mb", "8192", "1.5M", "2g", "4"]) == (4000, 10**8, 8192, 1_500_000, 2 * 10**9, 4)


@pytest.mark.parametrize("word", ["", "KB", "3", "-4", "10 KB/s", "nan", "1.1"])
def test_sizes_that_are_none(word: str) -> None:
    with pytest.raises(ConfigError, match="expected a size of whole float32 values"):
        parse_sizes([word])


def test_options() -> None:
    arguments = read_arguments(["bench", "allreduce", "--codecs", "int8", "--sizes", "1MB", "--json", "--depth", "3"])
    assert isinstance(arguments, BenchArguments)
    assert (arguments.codecs, arguments.sizes, arguments.json, arguments.depth) == (("int8",), (10**6,), True, 3)
    everything = read_arguments(["bench", "allreduce"])
    assert isinstance(everything, BenchArguments)
    assert everything.codecs == (*CODECS, AUTO)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seconds", "-1"], "at least 0"),
        (["--codecs", "int7"], "invalid choice"),
        (["--train.steps", "3"], "takes no configuration"),
    ],
)
def test_what_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(["bench", "allreduce", *argv])


def test_codecs_are_those_that_there_are() -> None:
    keys = list_keys()["reduce"]
    assert set(CODECS) == set(MODES)
    assert set(keys["mode"].choices) == {*MODES, "auto"}
    assert set(keys["allow"].choices) == {name for name, mode in MODES.items() if mode.number is not None}
