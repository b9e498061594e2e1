"""Fully connected layer, optionally with ReLU, whole or divided over shards.

Dims: B samples, R rows (samples, times positions where there are any), I input features, O output features (of this shard).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lepton_mpi.nn.chunked_linear import (
    WHOLE,
    Chunks,
    columns_backward_input,
    columns_backward_weight,
    linear_by_columns,
    linear_by_rows,
    rows_backward_input,
    rows_backward_weight,
)
from lepton_mpi.nn.initial import Initial, he_uniform, lecun_uniform
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.product import Precision
from lepton_mpi.ops.relu import relu_backward


@dataclass(frozen=True)
class Linear(Layer):
    """y = x W^T + b over the last dim, then maybe ReLU.

    Attributes:
        in_features, out_features: global widths.
        relu: whether ReLU follows.
        split: "column" divides the outputs over the shards; "row" divides the inputs, which come divided from a
            column layer before; None: every shard computes all of it.
        gather: whether the outputs of a column split are brought together again.
        feeds_loss: whether they are those of the model, which are not brought together where the loss takes them divided.
        unit: shards divide the split dim in whole units of this length.
        bias: whether there is one.
        initial: law of the initial weights; None: He-uniform before ReLU, else LeCun-uniform.
        tied: global name of another layer's parameter of shape [O, I] to use as weight; empty: `<name>.weight`.
    """

    in_features: int
    out_features: int
    relu: bool = False
    split: Literal["column", "row"] | None = None
    gather: bool = False
    feeds_loss: bool = False
    unit: int = 1
    bias: bool = True
    initial: Initial | None = None
    tied: str = ""

    @property
    def weight_spec(self) -> ParameterSpec:
        """Weight [O, I]."""
        initial = self.initial or (he_uniform if self.relu else lecun_uniform)(self.in_features)
        split_dim = None if self.split is None else 0 if self.split == "column" else 1
        return ParameterSpec(
            self.tied or f"{self.name}.weight", (self.out_features, self.in_features), split_dim, self.unit, initial
        )

    @property
    def bias_spec(self) -> ParameterSpec:
        """Bias [O], zeros; whole on every shard of a row split, since it is added after the sum."""
        return ParameterSpec(
            f"{self.name}.bias", (self.out_features,), 0 if self.split == "column" else None, self.unit, decay=False
        )

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight, and bias if there is one."""
        return (self.weight_spec, self.bias_spec) if self.bias else (self.weight_spec,)

    @property
    def divided(self) -> bool:
        """True after a column split that is not gathered."""
        return self.split == "column" and not self.gather

    @property
    def divided_unit(self) -> int:
        """As the outputs are divided."""
        return self.unit

    @property
    def can_divide_output(self) -> bool:
        """True where outputs of a column split go to the loss."""
        return self.gather and self.feeds_loss

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., O] for [..., I]."""
        return ((*require_shape(self, shapes, (-1, self.in_features))[:-1], self.out_features),)

    def cost(self, shapes: Shapes) -> int:
        """Return I O a row."""
        rows = 1
        for size in shapes[0][:-1]:
            rows *= size
        return rows * self.in_features * self.out_features

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> LinearModule:
        """Return the layer at work."""
        return LinearModule(
            parameters[self.weight_spec.name],
            parameters[self.bias_spec.name] if self.bias else None,
            self.relu,
            enter=place.replicate(self.out_features, self.unit) if self.split == "column" else Replicate(),
            reduce=place.sum(self.in_features, self.unit) if self.split == "row" else AddParts(),
            leave=place.gather(self.out_features, self.unit) if self.gather else Stay(),
            column_chunks=place.slices(self.out_features, self.unit) if self.split == "column" else WHOLE,
            row_chunks=place.slices(self.in_features, self.unit) if self.split == "row" else WHOLE,
            precision=place.precision,
            feeds_loss=self.feeds_loss,
        )


class LinearModule(Module):
    """y = leave(act(reduce(enter(x) @ weight.T) + bias)).

    The moves are identities on one shard. Split by columns, `enter` hands every shard the whole
    input and `leave` may gather the outputs; split by rows, `reduce` adds the shards' partial outputs
    (a sum, whose adjoint is the identity on each term: the bias, added after it, gets the same gradient).
    """

    def __init__(
        self,
        weight: Parameter,
        bias: Parameter | None,
        relu: bool,
        enter: Move,
        reduce: Move,
        leave: Move,
        column_chunks: Chunks = WHOLE,
        row_chunks: Chunks = WHOLE,
        precision: Precision = "fp32",
        feeds_loss: bool = False,
    ) -> None:
        """Make the layer on its parameters: weight [O, I], bias [O]; one of O and I may be divided into chunks."""
        self.weight = weight
        self.bias = bias
        self.relu = relu
        self.enter = enter
        self.reduce = reduce
        self.leave = leave
        self.columns = column_chunks
        self.rows = row_chunks
        self.precision: Precision = precision
        self.feeds_loss = feeds_loss

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., O] for x [B, ..., I]."""
        entered, enter, reduce = x.shape, self.enter.of(context.num_positions), self.reduce.of(context.num_positions)
        x = enter.forward(x)
        x_RI = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(x.size, self.weight.value.shape[1])
        weight = self.weight.value
        parts = (
            linear_by_rows(x_RI, weight, self.rows, precision=self.precision)
            if len(self.rows) > 1
            else [linear_by_columns(x_RI, weight, self.columns, precision=self.precision)]
        )
        y = reduce.forward([part.reshape(*x.shape[:-1], part.shape[-1]) for part in parts])  # a new array: may be overwritten
        y_RO = y.reshape(math.prod(y.shape[:-1]), y.shape[-1])
        if self.relu and self.bias is not None:
            bias_relu(y_RO, self.bias.value)
        else:
            if self.bias is not None:
                y_RO += self.bias.value
            if self.relu:
                y_RO.clip(0, None, out=y_RO)
        leave = Stay() if self.feeds_loss and context.divided_output else self.leave
        return leave.forward(y), (x_RI, y_RO if self.relu else None, entered, x.shape, (enter, reduce, leave))

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, ..., I] for dy [B, ..., O]."""
        pending = self._backward_output(dy, saved)
        return self._input_gradient(pending, saved) if want_dx else None, pending

    def backward(self, dy: Any, saved: Any, want_dx: bool, complete: Callable[[], None]) -> Any:
        """Do both halves, the weights first, since they are what others wait for. See `Module.backward`."""
        pending = self._backward_output(dy, saved)
        self.backward_weight(pending)
        complete()
        return self._input_gradient(pending, saved) if want_dx else None

    def _backward_output(self, dy: Any, saved: Any) -> tuple[Any, Any]:
        """Return the input and the gradient of the product that it enters, which both halves need."""
        x_RI, y_RO, _, _, (_, reduce, leave) = saved
        dz = leave.adjoint(dy)
        if y_RO is not None:
            dz = relu_backward(dz.reshape(y_RO.shape), y_RO).reshape(dz.shape)
        return x_RI, reduce.adjoint(dz).reshape(len(x_RI), self.weight.value.shape[0])

    def _input_gradient(self, pending: tuple[Any, Any], saved: Any) -> Any:
        (_, dz_RO), (_, _, entered, x_shape, (enter, _, _)) = pending, saved
        weight = self.weight.value
        parts = (
            [rows_backward_input(dz_RO, weight, self.rows, precision=self.precision)]
            if len(self.rows) > 1
            else columns_backward_input(dz_RO, weight, self.columns, precision=self.precision)
        )
        return enter.adjoint([part.reshape(x_shape) for part in parts]).reshape(entered)

    def backward_weight(self, pending: Any) -> None:
        """Add dW [O, I] and db [O]."""
        x_RI, dz_RO = pending
        db = self.bias.grad if self.bias is not None else None
        add, chunks = (rows_backward_weight, self.rows) if len(self.rows) > 1 else (columns_backward_weight, self.columns)
        add(dz_RO, x_RI, self.weight.grad, db, chunks, precision=self.precision)
