"""Stochastic gradient descent whose momentum is made before gradients are compressed: on every rank, of its own gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_mpi.ops.sgd_update import sgd_update
from lepton_mpi.optim.optimizer import Optimizer

# The slot of a data rank's own momentum.
RANK_MOMENTUM = "rank_momentum"


class CorrectedSGD(Optimizer):
    """SGD with momentum correction (Lin et al. 2018, Deep gradient compression, section 3.2; Zheng et al. 2019, dist-EF-SGD).

    Each rank keeps u = momentum*u + g of its own gradient g and sends that. With U the sum of what the ranks sent, and
    m = momentum*m + weight_decay*w, which every owner of weights knows without being sent anything, the step is w -= lr*(m + U):
    that of `SGD` but for rounding, where nothing is lost on the way and nothing is clipped. Momentum is never masked: what is sent
    often would lose it, and learn slower by up to 1 / (1 - momentum).
    """

    slot_names: ClassVar[tuple[str, ...]] = ("momentum",)
    rank_slot_names: ClassVar[tuple[str, ...]] = (RANK_MOMENTUM,)

    def __init__(self, momentum: float) -> None:
        """Make the optimizer with its constants."""
        self._momentum = momentum

    def replaces_outgoing(self, step: int) -> bool:
        """Return whether momenta are added up before an update: always. Local."""
        return True

    def outgoing(self, grads: Any, slots: Mapping[str, Any], num_ranks: int) -> None:
        """Take a gradient into this rank's momentum, and replace it by that. Local."""
        u = slots[RANK_MOMENTUM]
        u *= self._momentum
        u += grads
        grads[...] = u

    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice in place, from the sum of the ranks' momenta. Local."""
        decay = {"momentum": self._momentum, "weight_decay": weight_decay, "grad_scale": 0.0}
        sgd_update(values, grads, slots["momentum"], lr=lr, **decay)
        sgd_update(values, grads, None, lr=lr, grad_scale=grad_scale)
