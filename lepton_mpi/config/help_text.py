"""The text of `--help`: usage, and every key with what it admits, its default and its meaning."""

from __future__ import annotations

import textwrap
from typing import Final

from lepton_mpi.config.keys import Key, list_keys
from lepton_mpi.config.schema import Config
from lepton_mpi.config.toml_file import format_value

_COLUMNS: Final = 100
_INDENT: Final = " " * 6

_USAGE: Final = """\
usage: {program} [config.toml] [--section.key value ...] [--print-config] [--help]

Train a model. With no arguments it trains on the digits that ship with the package.

  config.toml              a TOML file with the sections and keys below
  --section.key value      set a key; also --section.key=value. Wins over the file; the last one
                           counts. Lists are written 1000,512,256; a bare --section.flag is true
  --print-config           print the resolved configuration as TOML and stop
  -h, --help               print this text and stop
"""


def format_help(program: str = "python -m lepton_mpi.train") -> str:
    """Return the help text, wrapped to 100 columns. Local.

    Args:
        program: the command as the user types it.
    """
    blocks = [_USAGE.format(program=program)]
    for section, keys in list_keys().items():
        purpose = (type(getattr(Config(), section)).__doc__ or "").strip()
        blocks.append("\n".join([f"[{section}] {purpose}", *(_format_key(key) for key in keys.values()), ""]))
    return "\n".join(blocks)


def _format_key(key: Key) -> str:
    head = f"--{key.full_name}: {key.expectation()}; default {format_value(key.default)}"
    lines = textwrap.wrap(head, _COLUMNS, initial_indent="  ", subsequent_indent=_INDENT, break_on_hyphens=False)
    return "\n".join(lines + textwrap.wrap(key.text, _COLUMNS, initial_indent=_INDENT, subsequent_indent=_INDENT))
