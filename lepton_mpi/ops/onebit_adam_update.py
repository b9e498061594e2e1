"""1-bit Adam after its warm-up, in place: Tang et al., "1-bit Adam", ICML 2021, algorithm 1."""

from __future__ import annotations

import math

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_beta, check_slices


def momentum_share(grads: Array, m: Array, *, beta1: float, num_ranks: int) -> None:
    """Replace a rank's gradient by its share of the new momentum. Local.

    grad = (1 - beta1) grad + beta1 / num_ranks * m: the sum over all ranks is beta1 m + (1 - beta1) * (sum of gradients).

    Args:
        grads: float32 [n]; the caller's, replaced.
        m: float32 [n], the momentum before the step, equal on all ranks; read only.
        beta1: decay of the momentum, in [0, 1).
        num_ranks: ranks that add up, at least 1.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit, or a hyperparameter is out of range.
    """
    check_slices(grads=grads, m=m)
    check_beta("beta1", beta1)
    if num_ranks < 1:
        raise ValueError(f"num_ranks: expected at least 1, received {num_ranks}")
    share = native.momentum_share if array_module(grads) is np else momentum_share_reference
    share(grads, m, beta1, num_ranks)


def momentum_share_reference(grads: Array, m: Array, beta1: float, num_ranks: int) -> None:
    """Do what `momentum_share` does, in NumPy. Local."""
    grads[:] = np.float32(1.0 - beta1) * grads + np.float32(beta1 / num_ranks) * m


def frozen_adam_update(
    values: Array,
    sums: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    step: int,
    frozen_step: int,
) -> None:
    """Take one step with the variance of an earlier one. Local.

    c = beta1 m; m = c + grad_scale (sum - c);
    value = (1 - lr weight_decay) value - lr / bias1 * m / (sqrt(v) / sqrt(bias2) + epsilon), with bias1 = 1 - beta1^step and
    bias2 = 1 - beta2^frozen_step. Where v is 0 there was no gradient in the whole warm-up, and the value only decays: what a codec
    makes of 0 is no reason to move. C++ and reference agree bit for bit.

    Args:
        values: float32 [n]; the caller's, updated.
        sums: float32 [n], the sum of `momentum_share` over all ranks; read only.
        m: float32 [n], momentum; the caller's, updated.
        v: float32 [n], variance; read only.
        lr: learning rate.
        beta1: decay of the momentum, in [0, 1).
        beta2: decay that the variance had, in [0, 1).
        epsilon: guard against division by zero.
        weight_decay: decoupled weight decay.
        grad_scale: factor of the gradients in the sum.
        step: number of this step, from 1.
        frozen_step: the last step that changed v.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit, or a hyperparameter is out of range.
    """
    check_slices(values=values, sums=sums, m=m, v=v)
    if not 1 <= frozen_step < step:
        raise ValueError(f"frozen_step: expected 1 or more and less than step {step}, received {frozen_step}")
    check_beta("beta1", beta1)
    check_beta("beta2", beta2)
    update = native.frozen_adam_update if array_module(values) is np else frozen_adam_update_reference
    update(values, sums, m, v, lr, beta1, beta2, epsilon, weight_decay, grad_scale, step, frozen_step)


def frozen_adam_update_reference(
    values: Array,
    sums: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    grad_scale: float,
    step: int,
    frozen_step: int,
) -> None:
    """Do what `frozen_adam_update` does, in NumPy. Local."""
    xp, f32 = array_module(values), np.float32
    carried = f32(beta1) * m
    m[:] = carried + f32(grad_scale) * (sums - carried)
    denominator = xp.sqrt(v) * f32(1.0 / math.sqrt(1.0 - beta2**frozen_step)) + f32(epsilon)
    direction = xp.where(v > 0, m / denominator, f32(0))
    values[:] = values * f32(1.0 - lr * weight_decay) - f32(lr / (1.0 - beta1**step)) * direction
