"""The direction of LAMB's step, in place: You et al., "Large batch optimization for deep learning", ICLR 2020, algorithm 2."""

from __future__ import annotations

import math

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_moments, check_slices


def lamb_direction(
    values: Array,
    grads: Array,
    m: Array,
    v: Array,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    step: int,
) -> None:
    """Replace the gradient of a slice by the direction of LAMB's step. Local.

    g = grad_scale * grad; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    grad = m / bias1 / (sqrt(v) / sqrt(bias2) + epsilon) + weight_decay value, with bias = 1 - beta^step.
    C++ and reference agree bit for bit; device arrays take the reference.

    Args:
        values: float32 [n]; read only.
        grads: float32 [n]; the caller's, replaced.
        m: float32 [n], first moment, zeros before the first step; the caller's, updated.
        v: float32 [n], second moment, likewise.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: guard against division by zero.
        weight_decay: share of the values added to the direction.
        grad_scale: factor of the gradients, for clipping.
        step: number of this step, from 1.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit, or a hyperparameter is out of range.
    """
    check_slices(values=values, grads=grads, m=m, v=v)
    check_moments(step, beta1, beta2)
    arguments = (values, grads, m, v, beta1, beta2, epsilon, weight_decay, grad_scale, step)
    direction = native.lamb_direction if array_module(values) is np else lamb_direction_reference
    direction(*arguments)


def lamb_direction_reference(
    values: Array,
    grads: Array,
    m: Array,
    v: Array,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    grad_scale: float,
    step: int,
) -> None:
    """Do what `lamb_direction` does, in NumPy. Local."""
    xp, f32 = array_module(values), np.float32
    g = grads * f32(grad_scale)
    m[:] = f32(beta1) * m + f32(1.0 - beta1) * g
    v[:] = f32(beta2) * v + f32(1.0 - beta2) * (g * g)
    denominator = xp.sqrt(v) * f32(1.0 / math.sqrt(1.0 - beta2**step)) + f32(epsilon)
    grads[:] = (m * f32(1.0 / (1.0 - beta1**step))) / denominator + f32(weight_decay) * values
