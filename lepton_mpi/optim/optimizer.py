"""What an optimizer is: named state arrays and an update of a slice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar


class Optimizer(ABC):
    """Update slices of the flat parameter buffer in place. Keeps no state of its own.

    Attributes:
        slot_names: names of the float32 state arrays, each as long as the buffer.
    """

    slot_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def update(
        self, values: Any, grads: Any, slots: Mapping[str, Any], lr: float, grad_scale: float, weight_decay: float, step: int
    ) -> None:
        """Update one slice. Local.

        Args:
            values: float32 [n], updated in place.
            grads: float32 [n], read.
            slots: state arrays [n] by name, updated in place.
            lr: learning rate.
            grad_scale: factor on the gradients, from clipping.
            weight_decay: weight decay of this slice.
            step: number of this update, from 1.
        """
