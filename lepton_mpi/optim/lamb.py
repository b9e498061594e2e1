"""LAMB: Adam whose step is as long, layer by layer, as the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_mpi.ops.lamb_update import lamb_direction
from lepton_mpi.ops.sgd_update import sgd_update
from lepton_mpi.optim.optimizer import Optimizer


class Lamb(Optimizer):
    """LAMB (You et al. 2020, algorithm 2, with bias corrections and the identity as phi)."""

    slot_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")
    needs_norms: ClassVar[bool] = True

    def __init__(self, beta1: float, beta2: float, epsilon: float) -> None:
        """Make the optimizer with its constants."""
        self._betas = (beta1, beta2)
        self._epsilon = epsilon

    def prepare(self, values: Any, grads: Any, slots: Mapping[str, Any], grad_scale: float, weight_decay: float, step: int) -> None:
        """Replace the gradient of one slice by m / (sqrt(v) + epsilon) + weight_decay * value, both moments corrected. Local."""
        lamb_direction(
            values,
            grads,
            slots["first_moment"],
            slots["second_moment"],
            beta1=self._betas[0],
            beta2=self._betas[1],
            epsilon=self._epsilon,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            step=step,
        )

    def layer_factor(self, weight_norm: float, direction_norm: float) -> float:
        """Return the trust ratio |w| / |direction|; 1 where one of them is 0, such as weights that start at 0. Local, pure."""
        return weight_norm / direction_norm if weight_norm > 0.0 and direction_norm > 0.0 else 1.0

    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Take the step: value -= lr * direction. Local; gradient and decay are in what `prepare` left."""
        sgd_update(values, grads, None, lr=lr)
