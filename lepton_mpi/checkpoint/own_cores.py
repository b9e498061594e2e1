"""Work on bytes, such as digests, spread over the cores that a rank has to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lepton_mpi.runtime.threads import ranks_on_node, usable_cores

_MAX_THREADS = 4  # memory has no more to give

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_on_own_cores(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Return what a function returns of each item, worked on by as many threads as the node has cores a rank. Local.

    Args:
        function: releases the GIL while it works.
        items: what to work on.
    """
    threads = min(usable_cores() // ranks_on_node(), _MAX_THREADS, len(items))
    if threads < 2:
        return list(map(function, items))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
