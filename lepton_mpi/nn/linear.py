"""Fully connected layer, optionally with ReLU, whole or one shard of it.

Dims: B samples, I input features, O output features (of this shard).
"""

from __future__ import annotations

from typing import Any

from lepton_mpi.nn.module import Module
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.linear import linear, linear_backward_input, linear_backward_weight
from lepton_mpi.ops.relu import relu_backward


class Linear(Module):
    """y = leave(act(reduce(enter(x) @ weight.T) + bias)).

    The moves are identities on one shard. Split by columns, `enter` hands every shard the whole
    input and `leave` may gather the outputs; split by rows, `reduce` adds the shards' partial outputs
    (a sum, whose adjoint is the identity on each term: the bias, added after it, gets the same gradient).
    """

    def __init__(self, weight: Parameter, bias: Parameter, relu: bool, enter: Move, reduce: Move, leave: Move) -> None:
        """Make the layer on its parameters: weight [O, I], bias [O]."""
        self.weight = weight
        self.bias = bias
        self.relu = relu
        self.enter = enter
        self.reduce = reduce
        self.leave = leave

    def forward(self, x: Any) -> tuple[Any, Any]:
        """Return y [B, O] for x [B, I]."""
        x_BI = self.enter.forward(x)
        y_BO = self.reduce.forward(linear(x_BI, self.weight.value))  # a new array, so it may be overwritten
        if self.relu:
            bias_relu(y_BO, self.bias.value)
        else:
            y_BO += self.bias.value
        return self.leave.forward(y_BO), (x_BI, y_BO)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, I] for dy [B, O]."""
        x_BI, y_BO = saved
        dz_BO = self.leave.adjoint(dy)
        if self.relu:
            dz_BO = relu_backward(dz_BO, y_BO)
        dz_BO = self.reduce.adjoint(dz_BO)
        dx = self.enter.adjoint(linear_backward_input(dz_BO, self.weight.value)) if want_dx else None
        return dx, (x_BI, dz_BO)

    def backward_weight(self, pending: Any) -> None:
        """Add dW [O, I] and db [O]."""
        x_BI, dz_BO = pending
        linear_backward_weight(dz_BO, x_BI, self.weight.grad, self.bias.grad)
