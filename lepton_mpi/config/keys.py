"""The configuration keys as a table: what each one admits, and how a value is read and checked.

Everything here is derived from the dataclasses of `schema`; a key added there is known to the
TOML reader, the command line and the help text at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, final, get_args, get_origin, get_type_hints

from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

# TOML v1.0 promises 64-bit signed integers, and so do the arrays that these numbers end up in.
_INT_LOW: Final = -(2**63)
_INT_HIGH: Final = 2**63 - 1
_INTEGER_TEXT: Final = re.compile(r"[+-]?\d+(_\d+)*", re.ASCII)


@final
@dataclass(frozen=True)
class Key:
    """One key of one section: its type, default, and what values it admits."""

    section: str
    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    is_list: bool
    default: Value
    text: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None

    @property
    def full_name(self) -> str:
        """Name as written on the command line and in messages, e.g. `train.steps`."""
        return f"{self.section}.{self.name}"

    def expectation(self) -> str:
        """Say in words what values the key admits, e.g. `an integer of at least 1`. Local."""
        if self.choices:
            noun = "one of " + ", ".join(self.choices)
            return f"a list, each {noun}" if self.is_list else noun
        nouns = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
        plurals = {bool: "booleans", int: "integers", float: "numbers", str: "strings"}
        noun = f"a list of {plurals[self.kind]}" if self.is_list else nouns[self.kind]
        return noun + self.bounds()

    def bounds(self) -> str:
        """Say in words between which numbers the key lies; empty without bounds. Local."""
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f" of at least {self.low:g}"
        return f" of at most {self.high:g}" if self.high is not None else ""


def list_keys() -> dict[str, dict[str, Key]]:
    """Return all keys as `keys[section][name]`, in the order of the schema. Local."""
    default = Config()
    return {
        section.name: {key.name: key for key in _section_keys(section.name, getattr(default, section.name))}
        for section in fields(Config)
    }


def find_key(keys: dict[str, dict[str, Key]], section: str, name: str, origin: str) -> Key:
    """Return the key of that name.

    Local.

    Args:
        keys: the table from `list_keys`.
        section: name of the section.
        name: name of the key inside it.
        origin: where the name was read, for the message.

    Raises:
        ConfigError: no such section or key; the message suggests the nearest one.
    """
    check_section(keys, section, origin, name)
    if name not in keys[section]:
        raise ConfigError(f"{origin}: unknown key {section}.{name}; {_suggest_key(keys, section, name)}")
    return keys[section][name]


def check_section(keys: dict[str, dict[str, Key]], section: str, origin: str, name: str = "") -> None:
    """Refuse a section that does not exist.

    Local.

    Raises:
        ConfigError: unknown section; the message suggests the nearest one, or the key of that name.
    """
    if section in keys:
        return
    hint = ""
    if name:
        places = [f"{other}.{name}" for other, members in keys.items() if name in members]
        hint = f"did you mean {' or '.join(places)}? " if places else ""
    elif section in {key for members in keys.values() for key in members}:
        places = [f"{other}.{section}" for other, members in keys.items() if section in members]
        hint = f"did you mean {' or '.join(places)}? "
    nearest = difflib.get_close_matches(section, keys, n=1)
    if not hint and nearest:
        hint = f"did you mean {nearest[0]}? "
    raise ConfigError(f"{origin}: unknown section {section!r}; {hint}sections are {', '.join(keys)}")


def read_value(key: Key, value: object, origin: str) -> Value:
    """Return a value that came with a type (from TOML or Python), checked and in the key's type.

    Local. An integer is taken for a number; nothing else is converted.

    Raises:
        ConfigError: wrong type, not among the choices, out of bounds, not finite, not storable.
    """
    if not key.is_list:
        return _read_scalar(key, value, origin)
    if not isinstance(value, list | tuple):
        raise _refusal(key, value, origin)
    return tuple(_read_scalar(key, item, origin) for item in value)


def read_text(key: Key, text: str, origin: str) -> Value:
    """Return the value that a command-line argument spells, checked and in the key's type.

    Local. Lists are `1000,512,256` or `[1000, 512, 256]`; booleans are `true` and `false`.

    Raises:
        ConfigError: as `read_value`, and for text that does not spell a value of the type.
    """
    if not key.is_list:
        return _read_scalar(key, _parse_scalar(key, text), origin)
    body = text.strip()
    if body.startswith("[") and body.endswith("]"):
        body = body[1:-1].strip()
    items = body.removesuffix(",").split(",") if body else []
    return tuple(_read_scalar(key, _parse_scalar(key, item.strip()), origin) for item in items)


def _section_keys(section: str, default: Any) -> Iterator[Key]:
    hints = get_type_hints(type(default))
    for member in fields(default):
        hint, metadata = hints[member.name], member.metadata
        is_list = get_origin(hint) is tuple
        yield Key(
            section=section,
            name=member.name,
            kind=get_args(hint)[0] if is_list else hint,
            is_list=is_list,
            default=getattr(default, member.name),
            text=metadata["text"],
            choices=metadata["choices"],
            low=metadata["low"],
            high=metadata["high"],
        )


def _suggest_key(keys: dict[str, dict[str, Key]], section: str, name: str) -> str:
    """Suggest the same name in another section, else the nearest name, else list the section."""
    elsewhere = [f"{other}.{name}" for other, members in keys.items() if name in members]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    nearest = difflib.get_close_matches(name, keys[section], n=1)
    if nearest:
        return f"did you mean {section}.{nearest[0]}?"
    return f"keys of [{section}] are {', '.join(keys[section])}"


def _parse_scalar(key: Key, text: str) -> object:
    """Return the value that a text spells, or the text itself where it spells none of that type."""
    if key.kind is bool:
        return {"true": True, "false": False}.get(text, text)
    try:
        if key.kind is int and _INTEGER_TEXT.fullmatch(text):
            return int(text)
        if key.kind is float:
            return float(text)
    except ValueError:  # not a number, or more digits than Python converts
        return text
    return text


def _read_scalar(key: Key, value: object, origin: str) -> Scalar:
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool) and _INT_LOW <= value <= _INT_HIGH:
        value = float(value)
    if not isinstance(value, bool | int | float | str) or type(value) is not key.kind or not _admits(key, value):
        raise _refusal(key, value, origin)
    return value


def _admits(key: Key, value: Scalar) -> bool:
    if isinstance(value, str):
        return _is_text(value) and (not key.choices or value in key.choices)
    if isinstance(value, int) and not _INT_LOW <= value <= _INT_HIGH:
        return False
    if not math.isfinite(value):
        return False
    return (key.low is None or value >= key.low) and (key.high is None or value <= key.high)


def _is_text(value: str) -> bool:
    """Tell whether a string can become a file name and TOML: neither takes NUL or half a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _refusal(key: Key, value: object, origin: str) -> ConfigError:
    return ConfigError(f"{origin}: {key.full_name}: expected {key.expectation()}, got {_received(key, value)}")


def _received(key: Key, value: object) -> str:
    """Spell a refused value as its author wrote it, with the type where that is what is wrong."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int) and not _INT_LOW <= value <= _INT_HIGH:
        return "an integer of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r}, which is not finite"
    if isinstance(value, float) and key.kind is int:
        return f"the float {value!r}"
    if isinstance(value, str) and not _is_text(value):
        return f"{value!r}, which is not Unicode text without NUL"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return f"the list {list(value)!r}"
    return f"{value!r}" if isinstance(value, int | float | str) else f"a {type(value).__name__}"
