"""The command line of the commands that look at checkpoints without the run that wrote them.

Nothing here may import NumPy; see `main`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from lepton_mpi.config.schema import Config

_WHERE: Final = "folder of a checkpoint, of a run's checkpoints, or of a run"


@final
@dataclass(frozen=True)
class CheckpointArguments:
    """What `inspect`, `verify`, `diff` or `convert-checkpoint` was asked.

    Attributes:
        command: which of them.
        paths: what was named, in order; the new folder is the last of `convert-checkpoint`.
        newest: only the newest checkpoint of a run.
        json: whether to print JSON.
        config: as the other commands have it; nothing can be set.
    """

    command: str
    paths: tuple[Path, ...]
    newest: bool = False
    json: bool = False
    config: Config = field(default_factory=Config)


COMMANDS: Final = ("inspect", "verify", "diff", "convert-checkpoint")


def read_checkpoint_arguments(options: argparse.Namespace) -> CheckpointArguments:
    """Return what one of `COMMANDS` was asked. Local."""
    paths = options.paths if "paths" in options else (options.first, options.second)
    return CheckpointArguments(
        options.command, tuple(map(Path, paths)), getattr(options, "newest", False), getattr(options, "json", False)
    )


def add_checkpoint_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `COMMANDS` to a parser. Local."""
    inspect = commands.add_parser(
        "inspect",
        help="say what a checkpoint holds",
        description="Print what a checkpoint holds: step, epoch, grid, family, format version, who wrote it and when, bytes, and "
        "each tensor with its shape, dtype and size. Of a run, the newest checkpoint. Digests of tensors are not compared; that is "
        "verify.",
    )
    inspect.add_argument("paths", nargs=1, metavar="CKPT", help=_WHERE)
    verify = commands.add_parser(
        "verify",
        help="compare every byte of checkpoints with their digests",
        description="Check checkpoints: the manifest, the structure, and every byte of every tensor. The ranks share the reading. "
        "Exit code 0: all is as it was written; 1: something is damaged, and each damaged tensor is named; 2: there is nothing to "
        "check.",
    )
    verify.add_argument("paths", nargs="+", metavar="CKPT", help=_WHERE)
    verify.add_argument("--newest", action="store_true", help="only the newest checkpoint of each folder; else all")
    diff = commands.add_parser(
        "diff",
        help="say in what two checkpoints differ",
        description="Compare two checkpoints tensor by tensor, whatever grids wrote them: the first element that differs, with "
        "both values, and the largest absolute and relative difference. Of a run, the newest checkpoint. Exit code 0: equal, every "
        "bit; 1: different; 2: they cannot be compared.",
    )
    diff.add_argument("first", metavar="A", help=_WHERE)
    diff.add_argument("second", metavar="B", help="the same")
    convert = commands.add_parser(
        "convert-checkpoint",
        help="write a checkpoint of an older format version anew",
        description="Verify a checkpoint of an older format version and write it anew in today's. The old one is left as it is.",
    )
    convert.add_argument("first", metavar="OLD", help="folder of the old checkpoint")
    convert.add_argument("second", metavar="NEW", help="folder to make")
    for command in (inspect, verify, diff):
        command.add_argument("--json", action="store_true", help="print one JSON object")
