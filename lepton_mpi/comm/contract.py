"""Mark collective functions: tests hold the mark against the docstring, strict mode the ranks against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lepton_mpi.comm.collective_mark import COLLECTIVE_MARK
from lepton_mpi.runtime.strict_mode import STRICT

_Function = TypeVar("_Function", bound=Callable[..., object])


def collective(over: str, *, equal: str = "", patient: bool = False) -> Callable[[_Function], _Function]:
    """Declare that all ranks of `over` must call a function, in the same order.

    Local. The docstring of the function must say `Collective over <over>.` In strict mode the ranks compare their calls
    before the function runs; else this returns the function itself and costs nothing.

    Args:
        over: the ranks in words, e.g. "grid.data", "comm", "the world".
        equal: name of an argument, an array whose size and dtype must be equal on all ranks; "": none.
        patient: whether ranks may come late, after work of their own that may take long.
    """

    def mark(function: _Function) -> _Function:
        setattr(function, COLLECTIVE_MARK, over)
        if not STRICT:
            return function
        from lepton_mpi.comm.strict.watch import checked  # only where it is asked for

        return checked(function, over, equal, patient)

    return mark
