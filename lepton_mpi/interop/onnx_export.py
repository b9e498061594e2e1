"""A trained model as an ONNX file: raw inputs in, the outputs of the last layer out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import lepton_mpi
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, ConfigError
from lepton_mpi.interop import onnx_image_layers, onnx_token_layers  # noqa: F401 - they register their layers
from lepton_mpi.interop.onnx_file import Signature, write_onnx
from lepton_mpi.interop.onnx_graph import INPUT, OnnxGraph
from lepton_mpi.interop.onnx_layers import add_layer
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.layer import Shapes

BATCH: Final = "batch"
LENGTH: Final = "length"

_OUTPUTS: Final = {
    "binary": "logits, whose sigmoid is the probability of each answer",
    "regression": "values",
    "ranking": "a score for each item; the first id of a sample is the user, the others are items",
}
_LOGITS: Final = "logits, whose softmax over the last dim is the probability of each class"


@collective("the communicator of gather")
def export_onnx(
    model: ModelSpec,
    normalisation: Normalisation,
    gather: Callable[[str], NDArray[np.float32] | None],
    path: Path,
    step: int,
) -> None:
    """Write a model as an ONNX file, on the one rank that gets the weights.

    Collective over the communicator of gather. All parameters are gathered, one after the other, in the same order on all
    ranks, even after an error of the file.

    The input is called "input", its first dim "batch"; ids are int64, values float32 and raw, since the graph normalises
    them. Where the layers take sequences of any length that dim is called "length". The output is called "output".

    Args:
        model: the model.
        normalisation: how its inputs are normalised, if they are values.
        gather: returns a whole parameter, float32, on one rank, always the same, and None on the others.
        path: the file; an old one is replaced. Weights of 2 GiB or more lie beside it, in `<path>.data`.
        step: training steps that made the weights, to be noted in the file.

    Raises:
        ConfigError: on all ranks: a layer has no form in ONNX, or there are no parameters. On that rank alone, after all is
            gathered: the package onnx is not installed, or nodes do not fit together.
        CheckpointError: on that rank alone, after all is gathered: the file cannot be written.
    """
    graph = build_graph(model, normalisation)
    if not model.parameters:  # nobody would know which rank writes
        raise ConfigError(f"family {model.family}: the model has no parameters, so there is nothing trained to export")
    arrays = (gather(spec.name) for spec in model.parameters)
    try:
        first = next(arrays, None)
        if first is not None:
            write_onnx(graph, _signature(model, step), model.parameters, itertools.chain((first,), arrays), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the model: {error.strerror or error}") from error
    finally:
        for _ in arrays:
            pass


def build_graph(model: ModelSpec, normalisation: Normalisation) -> OnnxGraph:
    """Return the graph of a model on whole parameters, without their values. Local, pure.

    Args:
        model: the model.
        normalisation: how its inputs are normalised, if they are values.

    Raises:
        ConfigError: a layer has no form in ONNX.
    """
    graph = OnnxGraph()
    x = INPUT
    if model.input_kind == "values":
        x = _add_normalisation(graph, x, normalisation)
    if model.pad_id is not None:
        graph.key_mask = graph.add("Not", graph.add("Equal", INPUT, graph.constant(model.pad_id, np.int64)))
    for layer, shapes in zip(model.layers, model.boundaries, strict=False):
        x = add_layer(layer, graph, x, shapes)
    graph.finish(x)
    return graph


def _add_normalisation(graph: OnnxGraph, x: str, normalisation: Normalisation) -> str:
    """Add (x - mean) / std, or nothing where that is x."""
    if normalisation.mean.any():
        x = graph.add("Sub", x, graph.constant(normalisation.mean))
    if (normalisation.std != 1).any():
        x = graph.add("Div", x, graph.constant(normalisation.std))
    return x


def _signature(model: ModelSpec, step: int) -> Signature:
    is_ids = model.input_kind == "ids"
    dims: tuple[int | str, ...] = (BATCH, *model.data.input_shape)
    output_names = {0: BATCH}
    other = _output_for_another_length(model) if is_ids else None
    if other is not None:
        dims = (BATCH, LENGTH)
        output_names |= {i + 1: LENGTH for i, size in enumerate(model.output_shape) if other[i] != size}
    output = _OUTPUTS.get(model.task.name, _LOGITS)
    metadata = {
        "family": model.family,
        "model": model.summary,
        "task": model.task.name,
        "output": output,
        "step": str(step),
        "lepton_mpi": lepton_mpi.__version__,
    }
    return Signature(is_ids, dims, output_names, output, metadata)


def _output_for_another_length(model: ModelSpec) -> tuple[int, ...] | None:
    """Return the shape of one output for samples [T] that are longer or shorter than those that the model was declared for.

    Returns:
        None where the layers take no such samples.
    """
    if len(model.data.input_shape) != 1:
        return None
    length = model.data.input_shape[0]
    for other in (length + 1, length - 1):
        shapes: Shapes = ((other,),)
        try:
            for layer in model.layers:
                shapes = layer.output(shapes)
        except ConfigError:
            continue
        return shapes[0] if other > 0 else None
    return None
