"""Which arrays the C++ kernels take."""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array, array_module


def runs_native(*arrays: Array) -> bool:
    """Return whether all are float32 arrays of NumPy; others take the generic path of their operation. Local."""
    return all(array.dtype == np.float32 and array_module(array) is np for array in arrays)
