"""Mark collective functions, so that tests can hold the mark against the docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])

# Attribute under which a collective function names the ranks that must call it.
COLLECTIVE_MARK = "__collective_over__"


def collective(over: str) -> Callable[[_Function], _Function]:
    """Declare that all ranks of `over` must call a function, in the same order.

    Local. The docstring of the function must say `Collective over <over>.`

    Args:
        over: the ranks in words, e.g. "grid.data", "comm", "the world".
    """

    def mark(function: _Function) -> _Function:
        setattr(function, COLLECTIVE_MARK, over)
        return function

    return mark
