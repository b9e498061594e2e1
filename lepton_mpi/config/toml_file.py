"""TOML: reading a configuration file, and writing the resolved configuration.

Source: TOML v1.0.0, https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path

from lepton_mpi.config.keys import Key, Value, check_section, find_key, read_value
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError


def read_toml(path: Path, keys: dict[str, dict[str, Key]]) -> dict[str, dict[str, Value]]:
    """Return the checked values that a TOML file sets, as `values[section][name]`.

    Local: one rank reads the file and broadcasts what it says.

    Args:
        path: the file, relative to the current directory.
        keys: the table from `keys.list_keys`.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 or not TOML (line and column are
            given), or sets something that does not exist or is not admitted.
    """
    return check_document(_parse(path), keys, str(path))


def check_document(document: dict[str, object], keys: dict[str, dict[str, Key]], origin: str) -> dict[str, dict[str, Value]]:
    """Return a parsed TOML document with every value checked and in its key's type.

    Local.

    Raises:
        ConfigError: an unknown section or key, or a value that its key does not admit.
    """
    values: dict[str, dict[str, Value]] = {}
    for section, table in document.items():
        check_section(keys, section, origin)
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: {section} is a section: expected a table [{section}], got {table!r}")
        values[section] = {name: read_value(find_key(keys, section, name, origin), value, origin) for name, value in table.items()}
    return values


def format_toml(config: Config) -> str:
    """Return the configuration as TOML, every key with its value; reading it gives an equal Config. Local."""
    blocks = []
    for section in fields(config):
        values = getattr(config, section.name)
        lines = [f"{member.name} = {format_value(getattr(values, member.name))}" for member in fields(values)]
        blocks.append("\n".join([f"[{section.name}]", *lines, ""]))
    return "\n".join(blocks)


def _parse(path: Path) -> dict[str, object]:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot read the configuration file {path}: {reason}; give the path of a TOML file") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: expected UTF-8 text, got byte 0x{content[error.start]:02x} in line {line}; save the file as UTF-8"
        ) from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, as are numbers of too many digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def format_value(value: Value) -> str:
    """Return a value as TOML writes it, e.g. `[1000, 512]` or `"auto"`. Local."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML's basic strings have JSON's escapes; of the control characters JSON leaves only DEL as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
