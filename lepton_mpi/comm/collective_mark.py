"""The mark of collective functions, which tests hold against their docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])

# Attribute under which a collective function names the ranks that must call it.
COLLECTIVE_MARK = "__collective_over__"


def unchecked_collective(over: str) -> Callable[[_Function], _Function]:
    """Declare the same as `collective` of a function that strict mode itself consists of. Local."""

    def mark(function: _Function) -> _Function:
        setattr(function, COLLECTIVE_MARK, over)
        return function

    return mark
