"""Which array library an operation runs on."""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# A NumPy or CuPy array. CuPy has no types of its own and follows NumPy's interface.
Array: TypeAlias = NDArray[Any]


def array_module(x: Array) -> Any:
    """Return the module of an array: numpy, or cupy for a CuPy array. Local.

    CuPy is imported only where an array of it exists already, so CPU runs never load it.
    """
    if type(x).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy")
    return np
