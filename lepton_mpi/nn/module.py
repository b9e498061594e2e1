"""What a layer is: a forward pass and a backward pass in two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Module(ABC):
    """A layer. It keeps parameters but no state between calls.

    What a pass needs later is returned, not stored, since several micro-batches are in flight at
    once. The backward pass comes in halves, so that a pipeline can send the input gradient on
    before it spends time on the weights.
    """

    @abstractmethod
    def forward(self, x: Any) -> tuple[Any, Any]:
        """Return the output for an input [B, ...] and what the backward pass needs."""

    @abstractmethod
    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradient of the input and what `backward_weight` needs.

        Args:
            dy: gradient of the output, shape of the output.
            saved: second result of the `forward` it belongs to.
            want_dx: False where nobody needs the input's gradient; None is returned for it then.
        """

    @abstractmethod
    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the parameters to their `grad` arrays.

        Args:
            pending: second result of `backward_input`.
        """
