"""What a loss is: the end of a model, where labels come in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class LossResult:
    """What a loss found on one micro-batch.

    Attributes:
        loss: sum over the labels of weight times loss, in float64.
        weight: sum of the labels' weights; the mean loss of a batch is the quotient of the two sums over all of it.
        gradient: gradient of factor * loss with respect to the output, in its shape and dtype.
        num_correct: how many labels of nonzero weight the output got right; 0 where that has no meaning.
        num_counted: how many labels of nonzero weight there were.
    """

    loss: float
    weight: float
    gradient: Any
    num_correct: int = 0
    num_counted: int = 0


class Loss(ABC):
    """A weighted sum over labels.

    Attributes:
        takes_divided: whether it takes the part of an output that this shard has, and asks the others; else it is local.
    """

    takes_divided: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        """Return the loss of an output and its gradient.

        Args:
            output: [B, ..., C], what the last layer made; B may be 0. Not written to.
            target: labels, one or one vector for each position of the output, as each loss says.
            factor: factor of the gradient alone.

        Raises:
            DataError: a label is out of range; says which.
        """
