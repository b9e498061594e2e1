"""Rotary position embedding (Su et al. 2021, "RoFormer"), on the two halves of a head as in Llama.

Dims: B samples, T positions, H heads, D features of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches the long wavelengths, Hugging Face's rope type "llama3" (Grattafiori et al. 2024, section 3.4).

    Attributes:
        factor: by how much the low frequencies are divided.
        low_freq_factor, high_freq_factor: wavelengths above original / low are stretched in full, those below
            original / high not at all, others in part.
        original_max_position_embeddings: positions that the model was first trained on.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def rotary_tables(
    positions: int,
    head_features: int,
    theta: float = 10000.0,
    scaling: Llama3Scaling | None = None,
    dtype: DTypeLike = np.float32,
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return cosines and sines of position * theta^(-2i / D), computed in float64 and rounded once. Local.

    Args:
        positions: T; positions count from 0.
        head_features: D, even.
        theta: base of the wavelengths.
        scaling: how frequencies are stretched; None: not.
        dtype: of the tables.

    Returns:
        Two arrays [T, D / 2].

    Raises:
        ValueError: D is odd.
    """
    if head_features % 2:
        raise ValueError(f"head_features: expected an even number, received {head_features}")
    frequencies = theta ** (-np.arange(0, head_features, 2, dtype=np.float64) / head_features)
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rotary(x: Array, cosines: Array, sines: Array) -> Array:
    """Return x with every pair (x[i], x[i + D/2]) turned by the angle of its position. Local.

    Args:
        x: [B, T, H, D], float32 or float64; B may be 0.
        cosines, sines: [T, D / 2], in the dtype of x.

    Returns:
        A new array of the shape of x.

    Raises:
        ValueError: the shapes do not fit.
    """
    return _rotated(x, cosines, sines, 1.0)


def rotary_backward(dy: Array, cosines: Array, sines: Array) -> Array:
    """Return dx: the rotation by the negative angles, its adjoint and its inverse. Local.

    Args:
        dy: gradient of the output, [B, T, H, D].
        cosines, sines: [T, D / 2], as in the forward pass.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the shapes do not fit.
    """
    return _rotated(dy, cosines, sines, -1.0)


def rotary_reference(x: Array, cosines: Array, sines: Array, sign: float = 1.0) -> Array:
    """Return what `rotary` does (sign 1) or `rotary_backward` does (sign -1), in NumPy or CuPy. Local."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    c, s = cosines[:, None], sines[:, None] * x.dtype.type(sign)
    y: Array = array_module(x).concatenate([first * c - second * s, second * c + first * s], axis=-1)
    return y


def _rotated(x: Array, cosines: Array, sines: Array, sign: float) -> Array:
    """Return a rotation by sign times the angles."""
    check_shape("x", x, (None, None, None, 2 * cosines.shape[-1]))
    for name, table in (("cosines", cosines), ("sines", sines)):
        check_shape(name, table, (x.shape[1], x.shape[3] // 2))
    if not runs_native(x, cosines, sines):
        return rotary_reference(x, cosines, sines, sign)
    x, cosines, sines = (np.ascontiguousarray(array) for array in (x, cosines, sines))
    y = np.empty_like(x)
    native.rotary(x.reshape(-1), cosines.reshape(-1), sines.reshape(-1), sign, y.reshape(-1), *x.shape[:3])
    return y


def _stretched(frequencies: NDArray[np.float64], scaling: Llama3Scaling) -> NDArray[np.float64]:
    """Return the frequencies that Llama 3.1 uses in their place."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    part = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    part = np.clip(part, 0, 1)
    return part * frequencies + (1 - part) * frequencies / scaling.factor
