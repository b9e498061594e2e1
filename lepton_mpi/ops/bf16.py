"""Rounding of float32 to bfloat16 values, kept as float32."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.native_path import runs_native


def round_to_bf16(x: Array) -> Array:
    """Return the nearest bfloat16 values, ties to even, as a new float32 array of the same shape and memory order. Local.

    Infinities stay, NaN stays NaN. bfloat16 has the exponent of float32 and 8 bits of mantissa, so nothing overflows but
    values within half a unit of the largest.

    Args:
        x: float32, any shape and strides.

    Raises:
        ValueError: another dtype.
    """
    if x.dtype != np.float32:
        raise ValueError(f"x: expected float32, received {x.dtype}")
    if not runs_native(x):
        return round_to_bf16_reference(x)
    y = np.empty_like(x)  # compact, in the memory order of x
    y_flat = y.ravel(order="K")  # a view
    if y.strides == x.strides:
        native.round_to_bf16(x.ravel(order="K"), y_flat)
    else:
        y[...] = x
        native.round_to_bf16(y_flat, y_flat)
    return y


def round_to_bf16_reference(x: Array) -> Array:
    """Do what `round_to_bf16` does, in NumPy or CuPy. Local."""
    xp = array_module(x)
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (odd + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    y: Array = xp.where(xp.isnan(x), x, rounded.view(np.float32))
    return y
