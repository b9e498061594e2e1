"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_mpi.ops.sgd_update import sgd_update
from lepton_mpi.optim.optimizer import Optimizer


class SGD(Optimizer):
    """m = momentum*m + (g + weight_decay*w); w -= lr*m (Sutskever et al. 2013, in PyTorch's form)."""

    slot_names: ClassVar[tuple[str, ...]] = ("momentum",)

    def __init__(self, momentum: float) -> None:
        """Make the optimizer with its constants."""
        self._momentum = momentum

    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice in place. Local."""
        momentum = slots["momentum"] if self._momentum else None
        sgd_update(values, grads, momentum, lr=lr, momentum=self._momentum, weight_decay=weight_decay, grad_scale=grad_scale)
