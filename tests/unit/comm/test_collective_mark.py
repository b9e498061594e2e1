"""The mark of collective functions and their docstrings say the same, in every module."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType

import lepton_mpi
from lepton_mpi.comm.collective_mark import COLLECTIVE_MARK
from lepton_mpi.comm.contract import collective

_SENTENCE = re.compile(r"Collective over ([\w. ]+?)(?=[,;]|\.\s|\.$|$)", re.MULTILINE)
# Modules below lepton_mpi.comm cannot import its mark; what is collective there starts or ends MPI itself.
_BELOW = (
    "lepton_mpi.errors",
    "lepton_mpi.config",
    "lepton_mpi.runtime",
    "lepton_mpi.native",
    "lepton_mpi._native",
    "lepton_mpi._onednn",
    "lepton_mpi._crc32",
)


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(lepton_mpi.__path__, "lepton_mpi."):
        if not info.name.startswith(_BELOW) and not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def functions() -> dict[str, FunctionType]:
    """Return all functions and methods that a module of the package defines."""
    found: dict[str, FunctionType] = {}

    def add(name: str, item: object) -> None:
        item = item.fget if isinstance(item, property) else item
        item = item.__func__ if isinstance(item, staticmethod | classmethod) else item
        if inspect.isfunction(item):
            found[name] = item

    for module in modules():
        for name, item in vars(module).items():
            if getattr(item, "__module__", "") != module.__name__:
                continue
            add(f"{module.__name__}.{name}", item)
            if inspect.isclass(item):
                for attribute, member in vars(item).items():
                    add(f"{module.__name__}.{name}.{attribute}", member)
    return found


def says(docstring: str | None) -> str | None:
    found = _SENTENCE.search(" ".join((docstring or "").split()))
    return found.group(1) if found else None


def test_marks_and_docstrings_agree() -> None:
    everything = functions()
    assert len(everything) > 100  # the walk did find the package
    marks = {name: getattr(function, COLLECTIVE_MARK, None) for name, function in everything.items()}
    sentences = {name: says(function.__doc__) for name, function in everything.items()}
    different = {name: (marks[name], sentences[name]) for name in everything if marks[name] != sentences[name]}
    assert not different, f"function: (mark, docstring) of {different}"
    assert sum(mark is not None for mark in marks.values()) > 20


def test_docstrings_of_local_functions_do_not_contradict() -> None:
    both = [
        name for name, function in functions().items() if says(function.__doc__) and re.search(r"\bLocal\.", function.__doc__ or "")
    ]
    assert both == []


# Calls of these on a communicator must come from all of its ranks.
_MPI_COLLECTIVES = {
    *("allgather", "Allgather", "Allgatherv", "Iallgather", "Iallgatherv", "allreduce", "Allreduce", "Iallreduce"),
    *("alltoall", "Alltoall", "Alltoallv", "Ialltoallv", "Barrier", "Ibarrier", "bcast", "Bcast", "gather", "Gather"),
    *("reduce", "Reduce", "scatter", "Scatter", "Dup", "Split", "Split_type", "Create_cart", "Free"),
}


def test_no_collective_hangs_on_the_rank() -> None:
    """No branch of an `if` that asks for the rank calls a collective function of the package or of MPI."""
    own = {name.rsplit(".", 1)[1] for name, function in functions().items() if hasattr(function, COLLECTIVE_MARK)}
    wrong = []
    for module in modules():
        branches = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.If)]
        for branch in (node for node in branches if re.search(r"\brank\b|Get_rank\(\)", ast.unparse(node.test))):
            calls = (node for part in branch.body + branch.orelse for node in ast.walk(part) if isinstance(node, ast.Call))
            wrong += [f"{module.__name__}:{call.lineno}" for call in calls if _is_collective(call.func, own)]
    assert wrong == []


def _is_collective(called: ast.expr, own: set[str]) -> bool:
    if isinstance(called, ast.Attribute):
        return called.attr in _MPI_COLLECTIVES
    return isinstance(called, ast.Name) and called.id in own


def test_the_mark_keeps_the_function() -> None:
    @collective("comm")
    def add(a: int, b: int) -> int:
        """Add. Collective over comm."""
        return a + b

    assert add(1, 2) == 3
    assert getattr(add, COLLECTIVE_MARK) == "comm"
    assert says(add.__doc__) == "comm"
