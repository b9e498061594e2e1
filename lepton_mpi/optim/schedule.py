"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from lepton_mpi.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, end_step: int) -> float:
    """Return the learning rate of a step. Local, pure.

    A linear warm-up from 0 to `lr`, then what `schedule` says, never below `min_lr`:

    - constant;
    - cosine: half a cosine down to `min_lr` (Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts);
    - linear, polynomial: min_lr + (lr - min_lr) * (1 - progress)^power, the power being 1 or `decay_power`;
    - step: times `drop_factor` at each share of the way in `drop_at`;
    - inverse_sqrt: lr * sqrt(warmup_steps / updates), without an end (Vaswani et al. 2017, eq. 3).

    Args:
        config: section of the optimizer.
        step: number of the step, from 0.
        end_step: step at which the decay ends, see `decay_end`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_sqrt":
        return max(config.lr * math.sqrt(max(config.warmup_steps, 1) / (step + 1)), config.min_lr)
    span = max(end_step - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    if config.schedule == "step":
        return max(config.lr * config.drop_factor ** sum(share <= progress for share in config.drop_at), config.min_lr)
    return config.min_lr + (config.lr - config.min_lr) * _REMAINING[config.schedule](progress, config.decay_power)


# Which share of the way from `lr` to `min_lr` is left, by progress and power.
_REMAINING: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda progress, power: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress, power: 1.0 - progress,
    "polynomial": lambda progress, power: (1.0 - progress) ** power,
}


def decay_end(config: OptimizerConfig, epoch_steps: int, num_steps: int) -> int:
    """Return the step at which the decay ends. Local, pure.

    A run that is cut short by `train.steps` keeps the schedule of its epochs, so that it can be
    continued to a later step and be the run that was never cut.

    Args:
        config: section of the optimizer.
        epoch_steps: steps of all epochs of the configuration.
        num_steps: steps of the run.
    """
    return config.warmup_steps + config.decay_steps if config.decay_steps else max(epoch_steps, num_steps)
