"""The command line: `[my.toml] --section.key value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, final

from lepton_mpi.config.checks import check_config
from lepton_mpi.config.keys import Key, Value, check_section, find_key, list_keys, read_text
from lepton_mpi.config.schema import Config
from lepton_mpi.config.toml_file import read_toml
from lepton_mpi.errors import ConfigError

_ORIGIN: Final = "command line"
_HELP: Final = ("--help", "-h")
_PRINT_CONFIG: Final = "--print-config"


@final
@dataclass(frozen=True)
class Arguments:
    """What a command line asks for."""

    config: Config
    help: bool = False
    print_config: bool = False


def load_config(argv: Sequence[str], allow_positional: bool = True) -> Config:
    """Return the configuration that a command line gives: defaults, then the file, then the overrides.

    Local: reads at most one file. See `parse_arguments` for the arguments and errors.
    """
    return parse_arguments(argv, allow_positional).config


def parse_arguments(argv: Sequence[str], allow_positional: bool = True) -> Arguments:
    """Read a command line, and the TOML file that it names.

    Local: one rank calls it and broadcasts the result, or the error through `raise_together`.
    With `--help` nothing else is looked at, so help is at hand whatever else is wrong.

    Args:
        argv: arguments without the program's name: at most one TOML file, `--section.key value`,
            `--section.key=value`, bare `--section.flag` for a boolean, `--help`, `--print-config`.
            Overrides win over the file wherever they stand; of two for one key the later wins.
        allow_positional: whether a file may be given.

    Returns:
        The checked configuration and the two switches.

    Raises:
        ConfigError: anything unknown, malformed, not admitted, or impossible together.
    """
    if any(argument in _HELP for argument in argv):
        return Arguments(Config(), help=True)
    keys = list_keys()
    files, overrides, print_config = _split(argv, keys)
    if files and not allow_positional:
        raise ConfigError(f"{_ORIGIN}: unexpected argument {files[0]!r}: expected only --section.key value")
    if len(files) > 1:
        raise ConfigError(f"{_ORIGIN}: expected at most one configuration file, got {' and '.join(map(repr, files))}")
    values = read_toml(Path(files[0]), keys) if files else {}
    for key, value in overrides:
        values.setdefault(key.section, {})[key.name] = value
    config = build_config(values)
    check_config(config)
    return Arguments(config, print_config=print_config)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[Key, Value]]]:
    """Take the overrides out of a command line that has arguments of its own.

    Local.

    Args:
        argv: arguments; those that begin with `--section.` are overrides, spelt as in `parse_arguments`.

    Returns:
        The other arguments and the checked overrides, each in their order.

    Raises:
        ConfigError: an override is unknown, malformed, or not admitted.
    """
    keys = list_keys()
    own: list[str] = []
    overrides: list[tuple[Key, Value]] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        following = argv[position + 1] if position + 1 < len(argv) else None
        position += 1
        if argument.startswith("--") and "." in argument.partition("=")[0]:
            key, value, used_following = _read_override(argument, following, keys)
            overrides.append((key, value))
            position += used_following
        else:
            own.append(argument)
    return own, overrides


def build_config(values: dict[str, dict[str, Value]]) -> Config:
    """Return the default configuration with the given checked values in their places. Local."""
    default = Config()
    sections = {section.name: replace(getattr(default, section.name), **values.get(section.name, {})) for section in fields(Config)}
    return Config(**sections)


def _split(argv: Sequence[str], keys: dict[str, dict[str, Key]]) -> tuple[list[str], list[tuple[Key, Value]], bool]:
    """Return the files, the overrides in their order, and whether the configuration is to be printed."""
    files: list[str] = []
    overrides: list[tuple[Key, Value]] = []
    print_config = False
    position = 0
    while position < len(argv):
        argument = argv[position]
        following = argv[position + 1] if position + 1 < len(argv) else None
        position += 1
        if argument == _PRINT_CONFIG:
            print_config = True
        elif argument.startswith("-"):
            key, value, used_following = _read_override(argument, following, keys)
            overrides.append((key, value))
            position += used_following
        else:
            files.append(argument)
    return files, overrides, print_config


def _read_override(argument: str, following: str | None, keys: dict[str, dict[str, Key]]) -> tuple[Key, Value, bool]:
    """Return the key and value of one option, and whether its value was the following argument."""
    name, has_value, text = argument.partition("=")
    key = _find_option(name, keys)
    if has_value:
        return key, read_text(key, text, _ORIGIN), False
    if key.kind is bool and not key.is_list:
        if following in ("true", "false"):
            return key, following == "true", True
        return key, True, False
    if following is None or following.startswith("--"):
        raise ConfigError(f"{_ORIGIN}: {key.full_name}: expected {key.expectation()} after {name}, got nothing")
    return key, read_text(key, following, _ORIGIN), True


def _find_option(option: str, keys: dict[str, dict[str, Key]]) -> Key:
    if not option.startswith("--"):
        raise ConfigError(f"{_ORIGIN}: unknown option {option!r}: expected --section.key value, {_PRINT_CONFIG} or --help")
    section, dot, name = option.removeprefix("--").partition(".")
    if not dot:
        check_section(keys, section, _ORIGIN)
        raise ConfigError(f"{_ORIGIN}: {option} is a section: expected --{section}.key value, keys are {', '.join(keys[section])}")
    return find_key(keys, section, name, _ORIGIN)
