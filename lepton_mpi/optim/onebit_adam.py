"""1-bit Adam: Adam for a while, then with a variance that stands still, so that momenta can travel in one bit a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lepton_mpi.ops.adamw_update import adamw_update
from lepton_mpi.ops.onebit_adam_update import frozen_adam_update, momentum_share
from lepton_mpi.optim.optimizer import Optimizer


class OneBitAdam(Optimizer):
    """1-bit Adam (Tang et al. 2021, algorithm 1) with decoupled weight decay and Adam's bias corrections.

    After `freeze_step` updates what the ranks add up are their shares of the next momentum. The update is linear in it, since
    the variance stands still, so that error feedback makes up for what a codec leaves out.
    """

    slot_names: ClassVar[tuple[str, ...]] = ("first_moment", "second_moment")

    def __init__(self, beta1: float, beta2: float, epsilon: float, freeze_share: float, freeze_step: int = 1) -> None:
        """Make the optimizer with its constants.

        Args:
            beta1: decay of the first moment.
            beta2: decay of the second moment.
            epsilon: guard against division by zero.
            freeze_share: share of the steps with plain Adam, see `for_steps`.
            freeze_step: the last step with plain Adam, at least 1.
        """
        self._betas = (beta1, beta2)
        self._epsilon = epsilon
        self._freeze_share = freeze_share
        self.freeze_step = freeze_step
        # The paper's warm-up is uncompressed: what a codec makes of small gradients would stay in the variance for good.
        self.warmup_steps = freeze_step

    def for_steps(self, num_steps: int) -> OneBitAdam:
        """Return the same optimizer for a run whose learning rate decays over so many steps. Local."""
        freeze_step = max(1, round(self._freeze_share * num_steps))
        return OneBitAdam(*self._betas, self._epsilon, self._freeze_share, freeze_step)

    def replaces_outgoing(self, step: int) -> bool:
        """Return whether momenta are added up before an update. Local."""
        return step > self.freeze_step

    def outgoing(self, grads: Any, slots: Mapping[str, Any], num_ranks: int) -> None:
        """Replace a rank's gradient by its share of the next momentum. Local."""
        momentum_share(grads, slots["first_moment"], beta1=self._betas[0], num_ranks=num_ranks)

    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice in place. Local."""
        moments = (slots["first_moment"], slots["second_moment"])
        beta1, beta2 = self._betas
        if not self.replaces_outgoing(step):
            adamw_update(
                values,
                grads,
                *moments,
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                epsilon=self._epsilon,
                weight_decay=weight_decay,
                grad_scale=grad_scale,
                step=step,
            )
            return
        frozen_adam_update(
            values,
            grads,
            *moments,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            epsilon=self._epsilon,
            weight_decay=weight_decay,
            grad_scale=grad_scale,
            step=step,
            frozen_step=self.freeze_step,
        )
