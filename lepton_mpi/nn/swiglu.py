"""The gated feed-forward of Llama. Dims: B samples, R rows (samples times positions), C features, F hidden (of this shard)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.chunked_linear import (
    Chunks,
    columns_backward_input,
    columns_backward_weight,
    linear_by_columns,
    linear_by_rows,
    rows_backward_input,
    rows_backward_weight,
)
from lepton_mpi.nn.initial import Initial, lecun_uniform
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.product import Precision
from lepton_mpi.ops.swiglu import swiglu, swiglu_backward


@dataclass(frozen=True)
class SwiGLU(Layer):
    """y = down(silu(gate(x)) up(x)) without biases (Shazeer 2020, eq. 6); shards divide the hidden features.

    Attributes:
        width: C.
        hidden: F, over all shards.
        initial: law of gate and up; None: LeCun-uniform.
        initial_down: law of down; None: LeCun-uniform.
    """

    width: int
    hidden: int
    initial: Initial | None = None
    initial_down: Initial | None = None

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Gate [F, C], up [F, C], down [C, F]."""
        first, last = self.initial or lecun_uniform(self.width), self.initial_down or lecun_uniform(self.hidden)
        return (
            ParameterSpec(f"{self.name}.gate_proj.weight", (self.hidden, self.width), 0, initial=first),
            ParameterSpec(f"{self.name}.up_proj.weight", (self.hidden, self.width), 0, initial=first),
            ParameterSpec(f"{self.name}.down_proj.weight", (self.width, self.hidden), 1, initial=last),
        )

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., C] for [..., C]."""
        return (require_shape(self, shapes, (-1, self.width)),)

    def cost(self, shapes: Shapes) -> int:
        """Return 3 C F a row."""
        return 3 * math.prod(shapes[0]) * self.hidden

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> SwiGLUModule:
        """Return the layer at work."""
        gate, up, down = (parameters[spec.name] for spec in self.parameters)
        return SwiGLUModule(
            gate, up, down, place.replicate(self.hidden), place.sum(self.hidden), place.slices(self.hidden), place.precision
        )


class SwiGLUModule(Module):
    """y = reduce(down(silu(gate(enter(x))) up(enter(x))))."""

    def __init__(
        self,
        gate: Parameter,
        up: Parameter,
        down: Parameter,
        enter: Move,
        reduce: Move,
        chunks: Chunks,
        precision: Precision = "fp32",
    ) -> None:
        """Make the layer on its parameters: gate and up [F, C], down [C, F], with F divided into chunks."""
        self.gate = gate
        self.up = up
        self.down = down
        self.enter = enter
        self.reduce = reduce
        self.chunks = chunks
        self.precision: Precision = precision

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., C] for x [B, ..., C]."""
        entered, enter, reduce = x.shape, self.enter.of(context.num_positions), self.reduce.of(context.num_positions)
        x = enter.forward(x)
        x_RC = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        gate_RF = linear_by_columns(x_RC, self.gate.value, self.chunks, precision=self.precision)
        up_RF = linear_by_columns(x_RC, self.up.value, self.chunks, precision=self.precision)
        parts = linear_by_rows(swiglu(gate_RF, up_RF), self.down.value, self.chunks, precision=self.precision)
        y = reduce.forward([part.reshape(x.shape) for part in parts])
        return y.reshape(entered), (x_RC, gate_RF, up_RF, x.shape, (enter, reduce))

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, ..., C] for dy [B, ..., C]."""
        x_RC, gate_RF, up_RF, x_shape, (enter, reduce) = saved
        dy_RC = reduce.adjoint(dy).reshape(x_RC.shape)
        dhidden_RF = rows_backward_input(dy_RC, self.down.value, self.chunks, precision=self.precision)
        dgate_RF, dup_RF, hidden_RF = swiglu_backward(dhidden_RF, gate_RF, up_RF)
        pending = (x_RC, dgate_RF, dup_RF, hidden_RF, dy_RC)
        if not want_dx:
            return None, pending
        parts = columns_backward_input(dgate_RF, self.gate.value, self.chunks, precision=self.precision)
        for part, more in zip(
            parts, columns_backward_input(dup_RF, self.up.value, self.chunks, precision=self.precision), strict=True
        ):
            part += more
        return enter.adjoint([part.reshape(x_shape) for part in parts]).reshape(dy.shape), pending

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the three weights."""
        x_RC, dgate_RF, dup_RF, hidden_RF, dy_RC = pending
        columns_backward_weight(dgate_RF, x_RC, self.gate.grad, None, self.chunks, precision=self.precision)
        columns_backward_weight(dup_RF, x_RC, self.up.grad, None, self.chunks, precision=self.precision)
        rows_backward_weight(dy_RC, hidden_RF, self.down.grad, None, self.chunks, precision=self.precision)
