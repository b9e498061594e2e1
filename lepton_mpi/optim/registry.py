"""Make the optimizer that a configuration names."""

from __future__ import annotations

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.optim.adamw import AdamW
from lepton_mpi.optim.lamb import Lamb
from lepton_mpi.optim.momentum_correction import CorrectedSGD
from lepton_mpi.optim.onebit_adam import OneBitAdam
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.optim.sgd import SGD


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """Return the optimizer of a configuration, whose name was checked when it was read. Local."""
    if config.name == "sgd":
        return CorrectedSGD(config.momentum) if config.momentum_correction else SGD(config.momentum)
    if config.name == "lamb":
        return Lamb(config.beta1, config.beta2, config.epsilon)
    if config.name == "onebit_adam":
        return OneBitAdam(config.beta1, config.beta2, config.epsilon, config.freeze_share)
    return AdamW(config.beta1, config.beta2, config.epsilon)
