"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math

from lepton_mpi.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step. Local, pure.

    Linear warm-up from 0, then constant or half a cosine down to `min_lr` (Loshchilov and Hutter
    2017, SGDR, eq. 5, without restarts).

    Args:
        config: section of the optimizer.
        step: number of the step, from 0.
        num_steps: steps of the whole run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(num_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
