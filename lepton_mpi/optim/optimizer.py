"""What an optimizer is: named state arrays and an update of a slice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar


class Optimizer(ABC):
    """Update slices of the flat parameter buffer in place. Keeps no state of its own.

    An optimizer whose step depends on norms of whole parameters (`needs_norms`) updates in two phases: `prepare` turns the
    gradient of every slice into the direction of its step; the caller adds up the squares of values and directions over all who own
    a part of a parameter, and multiplies the learning rate of `update` by `layer_factor` of the two norms.

    Attributes:
        slot_names: names of the float32 state arrays, each as long as the buffer.
        rank_slot_names: names of those that every data rank keeps for itself, as long as the weights, for `outgoing` alone.
        needs_norms: whether `prepare` and `layer_factor` take part.
        warmup_steps: updates, from the first one on, that need sums of gradients in nearly full precision.
    """

    slot_names: ClassVar[tuple[str, ...]]
    rank_slot_names: ClassVar[tuple[str, ...]] = ()
    needs_norms: ClassVar[bool] = False
    warmup_steps: int = 0

    @abstractmethod
    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice. Local.

        Args:
            values: float32 [n], updated in place.
            grads: float32 [n], read; what `prepare` left there, if it takes part.
            slots: state arrays [n] by name, updated in place.
            lr: learning rate.
            grad_scale: factor on the gradients, from clipping.
            weight_decay: weight decay of this slice.
            step: number of this update, from 1.
        """

    def prepare(self, values: Any, grads: Any, slots: Mapping[str, Any], grad_scale: float, weight_decay: float, step: int) -> None:
        """Replace the gradient of one slice by the direction of its step. Local; see the class. Arguments as of `update`."""
        raise NotImplementedError(f"{type(self).__name__} updates in one phase")

    def layer_factor(self, weight_norm: float, direction_norm: float) -> float:
        """Return the factor on the learning rate of a parameter. Local, pure; see the class.

        Args:
            weight_norm: norm of the whole parameter.
            direction_norm: norm of what `prepare` made for it.
        """
        raise NotImplementedError(f"{type(self).__name__} updates in one phase")

    def for_steps(self, num_steps: int) -> Optimizer:
        """Return the optimizer for a run whose learning rate decays over so many steps. Local; most do not mind."""
        return self

    def replaces_outgoing(self, step: int) -> bool:
        """Return whether `outgoing` takes part before an update. Local.

        Args:
            step: number of the update, from 1.
        """
        return False

    def outgoing(self, grads: Any, slots: Mapping[str, Any], num_ranks: int) -> None:
        """Replace what a data rank adds to the sum over the data axis. Local; see `replaces_outgoing`.

        Args:
            grads: float32 [n], this rank's gradient of a part of a parameter, updated in place.
            slots: state arrays [n] by name: this rank's own, updated in place, if the optimizer has `rank_slot_names`; else the
                node's, read.
            num_ranks: ranks whose gradients are added up.
        """
        raise NotImplementedError(f"{type(self).__name__} adds up gradients")
