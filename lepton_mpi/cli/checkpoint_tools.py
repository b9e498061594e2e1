"""`python -m lepton_mpi inspect`, `verify`, `diff` and `convert-checkpoint`: checkpoints without the run that wrote them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lepton_mpi.checkpoint.comparison import Comparison, compare_checkpoints
from lepton_mpi.checkpoint.inspection import find_checkpoints, inspect_checkpoint
from lepton_mpi.checkpoint.integrity import find_damage
from lepton_mpi.checkpoint.migration import CURRENT_VERSION, convert_checkpoint
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.cli.checkpoint_arguments import CheckpointArguments
from lepton_mpi.cli.checkpoint_report import comparison_dict, format_comparison, format_inspection, format_nbytes
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI


@collective("comm")
def run_checkpoint_tool(comm: MPI.Intracomm, arguments: CheckpointArguments) -> int:
    """Do as asked, print the result on rank 0, and return the exit code.

    Collective over comm.

    Raises:
        ConfigError: a folder is no checkpoint and has none.
        CheckpointError: a checkpoint cannot be read or written; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        if arguments.command == "verify":
            return _verify(comm, arguments)
        if arguments.command == "convert-checkpoint":
            return _convert(comm, *arguments.paths)
        work = _inspect if arguments.command == "inspect" else _diff
        text, code = do_on_root(comm, lambda: work(arguments))
    if comm.Get_rank() == 0:
        sys.stdout.write(text)
    return code


def _inspect(arguments: CheckpointArguments) -> tuple[str, int]:
    found = inspect_checkpoint(find_checkpoints(arguments.paths[0])[0])
    return (format_json(found.to_dict()) + "\n" if arguments.json else format_inspection(found)), 0


def _diff(arguments: CheckpointArguments) -> tuple[str, int]:
    first, second = (find_checkpoints(path)[0] for path in arguments.paths)
    with CheckpointReader(first) as a, CheckpointReader(second) as b:
        found = compare_checkpoints(a, b)
    return _format_diff(arguments, found, first, second), 0 if found.is_equal else 1


def _format_diff(arguments: CheckpointArguments, found: Comparison, first: Path, second: Path) -> str:
    if arguments.json:
        return format_json({"a": str(first), "b": str(second), **comparison_dict(found)}) + "\n"
    return f"a          {first}\nb          {second}\n{format_comparison(found)}"


@collective("comm")
def _verify(comm: MPI.Intracomm, arguments: CheckpointArguments) -> int:
    """Verify one checkpoint after the other and say so at once. Collective over comm."""
    is_root = comm.Get_rank() == 0

    def list_all() -> list[Path]:
        found = [find_checkpoints(path) for path in arguments.paths]
        return [path for paths in found for path in (paths[:1] if arguments.newest else paths)]

    results: list[dict[str, Any]] = []
    for path in do_on_root(comm, list_all):
        try:
            damages = find_damage(comm, path)
        except CheckpointError as error:
            damages = [str(error)]
        results.append({"checkpoint": str(path), "fine": not damages, "damages": damages})
        if is_root and not arguments.json:
            nbytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            lines = damages or [f"{path}: fine, {format_nbytes(nbytes)}"]
            sys.stdout.write("".join(f"{'DAMAGED ' * bool(damages)}{line}\n" for line in lines))
    fine = all(result["fine"] for result in results)
    if is_root and arguments.json:
        sys.stdout.write(format_json({"fine": fine, "checkpoints": results}) + "\n")
    return 0 if fine else 1


@collective("comm")
def _convert(comm: MPI.Intracomm, old: Path, new: Path) -> int:
    """Convert a checkpoint. Collective over comm."""
    old = do_on_root(comm, lambda: find_checkpoints(old)[0])
    version = convert_checkpoint(comm, old, new)
    if comm.Get_rank() == 0:
        before, after = (".".join(map(str, pair)) for pair in (version, CURRENT_VERSION))
        sys.stdout.write(f"wrote {new}: {old.name}, format {before} to {after}\n")
    return 0
