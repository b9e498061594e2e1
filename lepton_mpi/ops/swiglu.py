"""Gated linear unit with SiLU, y = silu(gate) up (Shazeer 2020, "GLU variants improve transformer", eq. 5)."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native
from lepton_mpi.ops.softplus import logistic


def swiglu(gate: Array, up: Array) -> Array:
    """Return silu(gate) up as a new array. Local.

    Args:
        gate: float32 or float64, any shape.
        up: same shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("up", up, gate.shape)
    if not runs_native(gate, up):
        return swiglu_reference(gate, up)
    gate, up = np.ascontiguousarray(gate), np.ascontiguousarray(up)
    y = np.empty_like(gate)
    native.swiglu(gate.reshape(-1), up.reshape(-1), y.reshape(-1))
    return y


def swiglu_backward(dy: Array, gate: Array, up: Array) -> tuple[Array, Array, Array]:
    """Return dgate, dup, and the output y again, which costs nothing here and need not be kept since the forward pass. Local.

    Args:
        dy: gradient of the output.
        gate, up: the inputs, same shape.

    Returns:
        Three new arrays of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("dy", dy, gate.shape)
    check_shape("up", up, gate.shape)
    if not runs_native(dy, gate, up):
        return swiglu_backward_reference(dy, gate, up)
    dy, gate, up = (np.ascontiguousarray(array) for array in (dy, gate, up))
    dgate, dup, y = np.empty_like(gate), np.empty_like(gate), np.empty_like(gate)
    native.swiglu_backward(*(array.reshape(-1) for array in (dy, gate, up, dgate, dup, y)))
    return dgate, dup, y


def swiglu_reference(gate: Array, up: Array) -> Array:
    """Return what `swiglu` does, in NumPy or CuPy. Local."""
    return gate * logistic(gate) * up


def swiglu_backward_reference(dy: Array, gate: Array, up: Array) -> tuple[Array, Array, Array]:
    """Return what `swiglu_backward` does, in NumPy or CuPy. Local."""
    s = logistic(gate)
    activated = gate * s
    return dy * up * (s + activated * (1 - s)), dy * activated, activated * up
