"""Reading single values, and naming what does not exist."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lepton_mpi.config.keys import Key, Value, check_section, find_key, list_keys, read_text, read_value
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError


def make_key(kind: type[bool] | type[int] | type[float] | type[str], default: Value, **limits: object) -> Key:
    facts: dict[str, object] = {"is_list": False, "choices": (), "low": None, "high": None} | limits
    return Key(section="part", name="key", kind=kind, default=default, text="", **facts)  # type: ignore[arg-type]


INTEGER = make_key(int, 1, low=1, high=9)
NUMBER = make_key(float, 0.5, low=0.0, high=2.0)
SWITCH = make_key(bool, False)
TEXT = make_key(str, "")
CHOICE = make_key(str, "cpu", choices=("cpu", "gpu"))
SIZES = make_key(int, (1,), is_list=True, low=1)
LEVELS = make_key(str, ("low",), is_list=True, choices=("low", "high"))


def test_the_table_holds_every_field_of_every_section() -> None:
    keys, default = list_keys(), Config()
    assert list(keys) == [section.name for section in fields(Config)]
    for section, members in keys.items():
        values = getattr(default, section)
        assert list(members) == [member.name for member in fields(values)]
        assert all(key.default == getattr(values, name) for name, key in members.items())
    assert keys["model"]["hidden_sizes"].is_list and keys["model"]["hidden_sizes"].kind is int
    assert keys["optimizer"]["lr"].kind is float


def test_every_default_is_admitted_by_its_own_key() -> None:
    for members in list_keys().values():
        for key in members.values():
            assert read_value(key, key.default, "defaults") == key.default, key.full_name
            assert key.text and not key.text.endswith("."), key.full_name


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (INTEGER, 9, 9),
        (NUMBER, 1, 1.0),
        (NUMBER, 2.0, 2.0),
        (SWITCH, True, True),
        (TEXT, "päth \n", "päth \n"),
        (CHOICE, "gpu", "gpu"),
        (SIZES, [3, 4], (3, 4)),
        (SIZES, [], ()),
        (LEVELS, ["high"], ("high",)),
    ],
)
def test_values_are_read_in_the_type_of_their_key(key: Key, value: object, expected: Value) -> None:
    found = read_value(key, value, "file")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (INTEGER, 0, "expected an integer from 1 to 9, got 0"),
        (INTEGER, 10, "got 10"),
        (INTEGER, True, "got the boolean true"),
        (INTEGER, 3.0, "got the float 3.0"),
        (INTEGER, "3", "got '3'"),
        (INTEGER, 2**63, "an integer of more than 64 bits"),
        (INTEGER, [3], r"got the list \[3\]"),
        (NUMBER, 2.5, "expected a number from 0 to 2, got 2.5"),
        (NUMBER, -0.1, "got -0.1"),
        (NUMBER, float("nan"), "nan, which is not finite"),
        (NUMBER, float("inf"), "inf, which is not finite"),
        (make_key(float, 0.0), float("-inf"), "-inf, which is not finite"),
        (NUMBER, 10**400, "an integer of more than 64 bits"),
        (NUMBER, False, "the boolean false"),
        (NUMBER, "1", "got '1'"),
        (make_key(float, 0.0, high=1.0), 2.0, "a number of at most 1, got 2.0"),
        (make_key(int, 1, low=1), 0, "an integer of at least 1, got 0"),
        (SWITCH, 1, "expected true or false, got 1"),
        (TEXT, 7, "expected a string, got 7"),
        (TEXT, "a\0b", "which is not Unicode text without NUL"),
        (TEXT, "caf\udce9", "which is not Unicode text without NUL"),
        (TEXT, {"a": 1}, "got a table"),
        (TEXT, None, "got a NoneType"),
        (CHOICE, "tpu", "expected one of cpu, gpu, got 'tpu'"),
        (SIZES, 3, "expected a list of integers of at least 1, got 3"),
        (SIZES, [3, 0], "got 0"),
        (SIZES, [[3]], "got the list"),
        (LEVELS, ["mid"], "expected a list, each one of low, high, got 'mid'"),
    ],
)
def test_values_that_are_not_admitted_name_key_expected_and_received(key: Key, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^my\.toml: part\.key: .*{message}"):
        read_value(key, value, "my.toml")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (INTEGER, "+7", 7),
        (make_key(int, 0), "-1_000", -1000),
        (NUMBER, "1e-3", 1e-3),
        (NUMBER, "1", 1.0),
        (SWITCH, "false", False),
        (TEXT, " as it is ", " as it is "),
        (SIZES, "1000,512,256", (1000, 512, 256)),
        (SIZES, "[1000, 512]", (1000, 512)),
        (SIZES, " [ 4, ] ", (4,)),
        (SIZES, "7", (7,)),
        (SIZES, "[]", ()),
        (SIZES, "", ()),
        (LEVELS, "low, high", ("low", "high")),
    ],
)
def test_text_is_read_in_the_type_of_its_key(key: Key, text: str, expected: Value) -> None:
    found = read_text(key, text, "command line")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (INTEGER, "3.0"),
        (INTEGER, ""),
        (INTEGER, "٣"),
        (make_key(int, 0), "9" * 5000),
        (NUMBER, "fast"),
        (NUMBER, "nan"),
        (NUMBER, "1e999"),
        (SWITCH, "True"),
        (SWITCH, "1"),
        (CHOICE, "CPU"),
        (SIZES, "3,,4"),
        (SIZES, ","),
        (SIZES, "3;4"),
        (SIZES, "[3"),
    ],
)
def test_text_that_spells_no_admitted_value_is_refused(key: Key, text: str) -> None:
    with pytest.raises(ConfigError, match=r"part\.key: expected"):
        read_text(key, text, "command line")


@pytest.mark.parametrize(
    ("section", "name", "message"),
    [
        ("train", "step", r"unknown key train\.step; did you mean train\.steps\?"),
        ("train", "lr", r"unknown key train\.lr; did you mean optimizer\.lr\?"),
        ("train", "zzzz", r"unknown key train\.zzzz; keys of \[train\] are steps, epochs"),
        ("optimiser", "lr", r"unknown section 'optimiser'; did you mean optimizer\.lr\?"),
        ("optimiser", "rate", r"unknown section 'optimiser'; did you mean optimizer\? sections are run, grid"),
        ("zzzz", "rate", "unknown section 'zzzz'; sections are run, grid"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(section: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match="^here: " + message):
        find_key(list_keys(), section, name, "here")


def test_a_key_that_stands_where_a_section_belongs_is_pointed_to_its_section() -> None:
    with pytest.raises(ConfigError, match=r"unknown section 'lr'; did you mean optimizer\.lr\?"):
        check_section(list_keys(), "lr", "here")
