"""The TOML file: reading it, writing it, and that the two are inverse."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_mpi.config.command_line import build_config, load_config
from lepton_mpi.config.keys import Key, list_keys
from lepton_mpi.config.schema import Config, ModelConfig, RunConfig
from lepton_mpi.config.toml_file import check_document, format_toml, format_value, read_toml
from lepton_mpi.errors import ConfigError


def admitted_scalars(key: Key) -> st.SearchStrategy[object]:
    if key.choices:
        return st.sampled_from(key.choices)
    if key.kind is bool:
        return st.booleans()
    if key.kind is int:
        low = -(2**63) if key.low is None else int(key.low)
        return st.integers(low, 2**63 - 1 if key.high is None else int(key.high))
    if key.kind is float:
        return st.floats(key.low, key.high, allow_nan=False, allow_infinity=False)
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def admitted_values(key: Key) -> st.SearchStrategy[object]:
    scalars = admitted_scalars(key)
    return st.lists(scalars, max_size=5).map(tuple) if key.is_list else scalars


CONFIGS = st.fixed_dictionaries(
    {
        section: st.fixed_dictionaries({name: admitted_values(key) for name, key in members.items()})
        for section, members in list_keys().items()
    }
).map(build_config)  # type: ignore[arg-type]


@given(CONFIGS)
def test_the_written_configuration_reads_back_as_it_was(config: Config) -> None:
    document = tomllib.loads(format_toml(config).encode().decode("utf-8"))
    assert build_config(check_document(document, list_keys(), "written")) == config


def test_the_default_configuration_reads_back_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "resolved.toml"
    path.write_text(format_toml(Config()), encoding="utf-8")
    assert load_config([str(path)]) == Config()


def test_every_key_is_written() -> None:
    document = tomllib.loads(format_toml(Config()))
    assert {section: set(table) for section, table in document.items()} == {
        section: set(members) for section, members in list_keys().items()
    }


def test_strings_lists_and_numbers_are_written_as_toml_has_them() -> None:
    assert format_value('a "b" \\ \n\x7f é') == '"a \\"b\\" \\\\ \\n\\u007F é"'
    assert format_value((1000, 512)) == "[1000, 512]"
    assert format_value(True) == "true"
    assert format_value(1e-8) == "1e-08"
    assert 'name = "x"\n' in format_toml(Config(run=RunConfig(name="x")))
    assert "hidden_sizes = []\n" in format_toml(Config(model=ModelConfig(hidden_sizes=())))


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b"\xef\xbb\xbf[model]\r\nhidden_sizes = [8, 4]\r\n[optimizer]\r\nlr = 1\r\n[train]\r\n")
    assert read_toml(path, list_keys()) == {"model": {"hidden_sizes": (8, 4)}, "optimizer": {"lr": 1.0}, "train": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train]\nsteps = \n", r"not valid TOML: .*line 2, column 9"),
        (b"[train]\nsteps = 1\nsteps = 2\n", r"not valid TOML: .*line 3"),
        (b"[run]\nname = 'a\xff'\n", r"expected UTF-8 text, got byte 0xff in line 2"),
        (b"[train]\nsteps = " + b"9" * 5000, "not valid TOML"),
        (b"[model]\nhidden_sizes = " + b"[" * 100_000, "not valid TOML"),
        (b"[trian]\n", "unknown section 'trian'; did you mean train"),
        (b"steps = 5\n", r"unknown section 'steps'; did you mean train\.steps"),
        (b"train = 5\n", r"train is a section: expected a table \[train\], got 5"),
        (b"[[train]]\nsteps = 5\n", "train is a section: expected a table"),
        (b"[train]\nstep = 5\n", r"unknown key train\.step; did you mean train\.steps"),
        (b"[train.steps]\nmany = 5\n", r"train\.steps: expected an integer of at least 0, got a table"),
        (b"[train]\nsteps = 2026-11-21\n", r"train\.steps: expected an integer of at least 0, got a date"),
        (b"[train]\nseed = nan\n", r"train\.seed: expected an integer of at least 0, got nan"),
        (b"[optimizer]\nlr = -1.0\n", r"optimizer\.lr: expected a number of at least 0, got -1\.0"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"my\.toml: " + message):
        read_toml(path, list_keys())


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*none\.toml: No such file"):
        read_toml(tmp_path / "none.toml", list_keys())
    with pytest.raises(ConfigError, match="Is a directory"):
        read_toml(tmp_path, list_keys())
