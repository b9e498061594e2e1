"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math

from lepton_mpi.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, end_step: int) -> float:
    """Return the learning rate of a step. Local, pure.

    Linear warm-up from 0, then constant or half a cosine down to `min_lr` (Loshchilov and Hutter
    2017, SGDR, eq. 5, without restarts).

    Args:
        config: section of the optimizer.
        step: number of the step, from 0.
        end_step: step at which the cosine reaches `min_lr`, see `decay_end`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(end_step - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def decay_end(config: OptimizerConfig, epoch_steps: int, num_steps: int) -> int:
    """Return the step at which the cosine ends. Local, pure.

    A run that is cut short by `train.steps` keeps the schedule of its epochs, so that it can be
    continued to a later step and be the run that was never cut.

    Args:
        config: section of the optimizer.
        epoch_steps: steps of all epochs of the configuration.
        num_steps: steps of the run.
    """
    return config.warmup_steps + config.decay_steps if config.decay_steps else max(epoch_steps, num_steps)
