"""Linear movements of activations between the shards of a layer, as the layers see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Move(ABC):
    """A linear map F and its adjoint F*, such that <F x, y> = <x, F* y>."""

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Return F x."""

    @abstractmethod
    def adjoint(self, dy: Any) -> Any:
        """Return F* dy."""


class Stay(Move):
    """The identity: nothing moves."""

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    def adjoint(self, dy: Any) -> Any:
        """Return dy."""
        return dy
