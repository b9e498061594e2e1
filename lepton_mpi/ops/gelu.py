"""Gaussian error linear unit, y = x Phi(x) (Hendrycks, Gimpel 2016), exactly or in the paper's tanh form."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native

_TWICE_ROOT_TWO_OVER_PI = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def gelu(x: Array, approximate: bool = False) -> Array:
    """Return x Phi(x) as a new array of any shape; NaN stays NaN. Local.

    Args:
        x: float32 or float64, any shape.
        approximate: the tanh form, PyTorch's `approximate="tanh"`, the "gelu_new" of GPT-2.
    """
    if not runs_native(x):
        return gelu_reference(x, approximate)[0]
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    native.gelu(x.reshape(-1), y.reshape(-1), None, approximate)
    return y


def gelu_with_slope(x: Array, approximate: bool = False) -> tuple[Array, Array]:
    """Return gelu(x) and its derivative, Phi(x) + x phi(x) or that of the tanh form. Local.

    The two share their dear parts, and the derivative takes the place of x in what the backward pass keeps.

    Args:
        x: float32 or float64, any shape.
        approximate: as for `gelu`.

    Returns:
        Two new arrays of the shape of x.
    """
    if not runs_native(x):
        return gelu_reference(x, approximate)
    x = np.ascontiguousarray(x)
    y, slope = np.empty_like(x), np.empty_like(x)
    native.gelu(x.reshape(-1), y.reshape(-1), slope.reshape(-1), approximate)
    return y, slope


def gelu_backward(dy: Array, slope: Array) -> Array:
    """Return dx = dy slope. Local.

    Args:
        dy: gradient of the output.
        slope: same shape, from `gelu_with_slope`.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("dy", dy, slope.shape)
    return dy * slope


def gelu_reference(x: Array, approximate: bool = False) -> tuple[Array, Array]:
    """Return what `gelu_with_slope` does, in NumPy or CuPy. Local."""
    if approximate:
        gate = _tanh_gate(x)
        inner = _TWICE_ROOT_TWO_OVER_PI * (1 + 3 * _CUBIC * x * x)
        return x * gate, gate + x * gate * (1 - gate) * inner
    below = _normal_below(x)
    density = array_module(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return x * below, below + x * density


def _tanh_gate(x: Array) -> Array:
    """Return (1 + tanh(u)) / 2 with the u of the tanh form."""
    gate: Array = 0.5 * (1 + array_module(x).tanh(0.5 * _TWICE_ROOT_TWO_OVER_PI * (x + _CUBIC * x * x * x)))
    return gate


def _normal_below(x: Array) -> Array:
    """Return the probability of a normal number below x, in the dtype of x."""
    xp = array_module(x)
    scaled = -math.sqrt(0.5) * x
    # NumPy has no erfc; this path is for tests in float64, so that its speed does not matter.
    erfc: Any = _erfc_numpy if xp is np else importlib.import_module("cupyx.scipy.special").erfc
    below: Array = 0.5 * erfc(scaled)
    return below


def _erfc_numpy(x: Array) -> Array:
    """Return the complementary error function, element by element."""
    return np.array([math.erfc(value) for value in x.reshape(-1).tolist()], x.dtype).reshape(x.shape)
