"""What layers are in ONNX: how to declare it for a layer, and those that are of no particular kind.

Inference only: dropout is the identity. Parameters are whole, so that moves between shards are identities too.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.onnx_graph import OnnxGraph
from lepton_mpi.nn.activation import Gelu, Silu
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.divide import Divide
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.feed_forward import FeedForward
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.layer_norm import LayerNorm
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.residual import Residual
from lepton_mpi.nn.rms_norm import RMSNorm
from lepton_mpi.nn.skip import Down, PassBy, Up
from lepton_mpi.nn.swiglu import SwiGLU
from lepton_mpi.nn.tanh import Tanh
from lepton_mpi.nn.whole_positions import WholePositions


@singledispatch
def export_layer(layer: Layer, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    """Add the nodes of a layer to a graph. Local.

    For a layer class of your own:

        @export_layer.register
        def _(layer: MyLayer, graph: OnnxGraph, x: str, shapes: Shapes) -> str:
            return graph.add("Mul", x, f"{layer.name}.weight")

    A layer that has others in it adds them with `add_layer`.

    Args:
        layer: the layer.
        graph: where its nodes go.
        x: name of the input [B, ...]; a tuple of names where several arrays flow.
        shapes: shapes of one sample of these arrays, as for `Layer.output`.

    Returns:
        The name of the output, or a tuple of names.

    Raises:
        ConfigError: nothing is registered for the class of the layer.
    """
    raise ConfigError(
        f"layer {layer.name}: no ONNX export for its class {type(layer).__qualname__}: register a function for it with "
        "@export_layer.register, from lepton_mpi.interop.onnx_layers, in the module of the class"
    )


def add_layer(layer: Layer, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    """Add the nodes of a layer, unless what is registered is for a class that works differently. Local.

    What is registered for a class is good for a derived one as long as that does not build another module.

    Args:
        layer: the layer.
        graph: where its nodes go.
        x: see `export_layer`, as for shapes and what is returned.
        shapes: shapes of one sample.

    Raises:
        ConfigError: nothing is registered for the layer.
    """
    kinds = type(layer).__mro__
    owner = next(kind for kind in kinds if kind in export_layer.registry)  # object at the latest
    if owner is not object and type(layer).build is not getattr(owner, "build", None):
        return export_layer.dispatch(object)(layer, graph, x, shapes)
    return export_layer(layer, graph, x, shapes)


def add_linear(graph: OnnxGraph, x: str, weight: str, bias: str | None, is_matrix: bool) -> str:
    """Add y = x W^T + b over the last dim. Local.

    Args:
        graph: where the nodes go.
        x: [B, I], or [B, ..., I].
        weight: [O, I].
        bias: [O], or None.
        is_matrix: whether x has two dims.
    """
    if is_matrix:
        return graph.add("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)
    y = graph.add("MatMul", x, graph.add("Transpose", weight, perm=(1, 0)))
    return y if bias is None else graph.add("Add", y, bias)


@export_layer.register
def _linear(layer: Linear, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    bias = layer.bias_spec.name if layer.bias else None
    y = add_linear(graph, x, layer.weight_spec.name, bias, len(shapes[0]) == 1)
    return graph.add("Relu", y) if layer.relu else y


@export_layer.register
def _whole_positions(layer: WholePositions, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return add_layer(layer.body, graph, x, shapes)


@export_layer.register(Chain)
@export_layer.register(FeedForward)
def _chain(layer: Chain | FeedForward, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    for part in layer.layers:
        x, shapes = add_layer(part, graph, x, shapes), part.output(shapes)
    return x


@export_layer.register
def _residual(layer: Residual, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    y = add_layer(layer.body, graph, x, shapes)
    around = x if layer.shortcut is None else add_layer(layer.shortcut, graph, x, shapes)
    return graph.elementwise("Add", y, around)


@export_layer.register
def _down(layer: Down, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    x, *skips = _arrays(x)
    kept = add_layer(layer.body, graph, x, shapes[:1])
    return (add_layer(layer.pool, graph, kept, layer.body.output(shapes[:1])), kept, *skips)


@export_layer.register
def _up(layer: Up, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    x, skip, *rest = x
    risen = add_layer(layer.up, graph, x, shapes[:1])
    (of_risen,), of_skip = layer.up.output(shapes[:1]), shapes[1]
    if len(of_skip) == 3:
        joined = graph.from_images(graph.add("Concat", graph.images(risen), graph.images(skip), axis=1))
    else:
        joined = graph.add("Concat", risen, skip, axis=-1)
    return _bundle(add_layer(layer.body, graph, joined, ((*of_skip[:-1], of_risen[-1] + of_skip[-1]),)), *rest)


@export_layer.register
def _pass_by(layer: PassBy, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    x, *skips = _arrays(x)
    return _bundle(add_layer(layer.body, graph, x, shapes[:1]), *skips)


@export_layer.register(Dropout)
@export_layer.register(Divide)
def _identity(layer: Dropout | Divide, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return x


@export_layer.register
def _flatten(layer: Flatten, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return x if len(shapes[0]) == 1 else graph.add("Flatten", x, axis=1)


@export_layer.register
def _relu(layer: ReLU, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.elementwise("Relu", x)


@export_layer.register
def _tanh(layer: Tanh, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.elementwise("Tanh", x)


@export_layer.register
def _gelu(layer: Gelu, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    if layer.approximate:
        cube = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), graph.constant(0.044715))
        inner = graph.add("Mul", graph.add("Add", x, cube), graph.constant(math.sqrt(2 / math.pi)))
        gate = graph.add("Tanh", inner)
    else:
        gate = graph.add("Erf", graph.add("Mul", x, graph.constant(math.sqrt(0.5))))
    half = graph.add("Mul", x, graph.constant(0.5))
    return graph.add("Mul", half, graph.add("Add", gate, graph.constant(1.0)))


@export_layer.register
def _silu(layer: Silu, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.elementwise("Mul", x, graph.elementwise("Sigmoid", x))


@export_layer.register
def _layer_norm(layer: LayerNorm, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    names = [spec.name for spec in layer.parameters]
    return graph.add("LayerNormalization", x, *names, axis=-1, epsilon=layer.epsilon)


@export_layer.register
def _rms_norm(layer: RMSNorm, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    mean = graph.add("ReduceMean", graph.add("Mul", x, x), axes=(-1,), keepdims=1)
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(layer.epsilon)))
    return graph.add("Mul", graph.add("Div", x, root), layer.parameters[0].name)


@export_layer.register
def _swiglu(layer: SwiGLU, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    is_matrix = len(shapes[0]) == 1
    gate, up, down = (spec.name for spec in layer.parameters)
    opened = add_linear(graph, x, gate, None, is_matrix)
    hidden = graph.add("Mul", graph.add("Mul", opened, graph.add("Sigmoid", opened)), add_linear(graph, x, up, None, is_matrix))
    return add_linear(graph, hidden, down, None, is_matrix)


def _arrays(x: Any) -> tuple[Any, ...]:
    """Return what flows as a tuple."""
    return x if isinstance(x, tuple) else (x,)


def _bundle(*names: Any) -> Any:
    """Return names as they flow: one of them bare."""
    return names[0] if len(names) == 1 else names
