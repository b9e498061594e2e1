"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_mpi.ops.adamw_update import adamw_update
from lepton_mpi.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2)."""

    slot_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def __init__(self, beta1: float, beta2: float, epsilon: float) -> None:
        """Make the optimizer with its constants."""
        self._betas = (beta1, beta2)
        self._epsilon = epsilon

    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice in place. Local."""
        adamw_update(
            values,
            grads,
            slots["first_moment"],
            slots["second_moment"],
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            epsilon=self._epsilon,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            step=step,
        )
