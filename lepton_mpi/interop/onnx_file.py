"""Write ONNX files: the graph, and the weights inside of it or, if they are many, in a file beside it.

The format is that of https://github.com/onnx/onnx/blob/main/docs/IR.md, the file beside it that of docs/ExternalData.md there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

import lepton_mpi
from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.onnx_graph import INPUT, OPSET, OUTPUT, OnnxGraph
from lepton_mpi.nn.parameter import ParameterSpec
from lepton_mpi.runtime.whole_file import WholeFile

SUFFIX: Final = ".onnx"
DATA_SUFFIX: Final = ".data"

# The version of the file format that came with opset 17; later ones would only keep older readers out.
_IR_VERSION = 8
# A message of protobuf may have 2 GiB; graph and names need a little of it.
_LARGEST_INSIDE = 2**31 - 2**24
# So that readers can map a tensor into memory.
_ALIGNMENT = 4096


@final
@dataclass(frozen=True)
class Signature:
    """What a graph takes, and what is said of it.

    Attributes:
        is_ids: whether inputs are int64 ids; else they are float32 values.
        dims: dims of the input; a text stands for any length and names it.
        output_names: names of the dims of the output, by their numbers, where they are not fixed.
        output: what the outputs are, in words.
        metadata: texts to keep in the file.
    """

    is_ids: bool
    dims: tuple[int | str, ...]
    output_names: Mapping[int, str]
    output: str
    metadata: Mapping[str, str]


def require_onnx() -> Any:
    """Return the package onnx, which is an optional one. Local.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise ConfigError(
            f"ONNX files need the Python package onnx, which cannot be imported ({error}): pip install lepton_mpi[onnx]"
        ) from error
    return onnx


def write_onnx(
    graph: OnnxGraph,
    signature: Signature,
    specs: Sequence[ParameterSpec],
    arrays: Iterable[NDArray[np.float32] | None],
    path: Path,
) -> None:
    """Write a graph and its weights; files of that name are replaced when all is written. Local.

    Weights of 2 GiB or more go into the file `<path>.data`; what was there under both names is gone before the new ones come,
    so that nobody finds a graph with the weights of another.

    Args:
        graph: the nodes, finished.
        signature: what goes in.
        specs: the parameters.
        arrays: their values in the same order, float32; one is taken at a time.
        path: the file.

    Raises:
        ConfigError: onnx is not installed, or nodes do not fit together.
        OSError: a file cannot be written.
    """
    onnx = require_onnx()
    model = _make_model(onnx, graph, signature, specs)
    is_outside = sum(4 * int(np.prod(spec.shape, dtype=np.int64)) for spec in specs) > _LARGEST_INSIDE
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        main = stack.enter_context(WholeFile(path))
        data = stack.enter_context(WholeFile(path.with_name(path.name + DATA_SUFFIX))) if is_outside else None
        for spec, array in zip(specs, arrays, strict=True):
            values = np.ascontiguousarray(array, "<f4")
            tensor = model.graph.initializer.add(name=spec.name, data_type=onnx.TensorProto.FLOAT, dims=spec.shape)
            if data is None:
                tensor.raw_data = values.tobytes()
            else:
                _describe_outside(onnx, tensor, data.path.name, *_append(data, values))
        main.file.write(model.SerializeToString())
        if data is not None:
            path.unlink(missing_ok=True)
            data.commit()
        main.commit()


def _make_model(onnx: Any, graph: OnnxGraph, signature: Signature, specs: Sequence[ParameterSpec]) -> Any:
    """Return the model without its weights, checked."""
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node(node.operator, node.inputs, node.outputs, name=f"{node.operator}_{i}", **node.attributes)
        for i, node in enumerate(graph.nodes)
    ]
    source = helper.make_tensor_value_info(INPUT, kinds.INT64 if signature.is_ids else kinds.FLOAT, signature.dims)
    weights = [helper.make_tensor_value_info(spec.name, kinds.FLOAT, spec.shape) for spec in specs]
    target = helper.make_tensor_value_info(OUTPUT, kinds.FLOAT, None, doc_string=signature.output)
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    # While the nodes are checked the weights are inputs, since the check copies all that is there.
    model = helper.make_model(
        helper.make_graph(nodes, "lepton_mpi", [source, *weights], [target], constants),
        producer_name="lepton_mpi",
        producer_version=lepton_mpi.__version__,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, dict(signature.metadata))
    try:
        found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        model.graph.output[0].type.CopyFrom(found.graph.output[0].type)
        for i, dim in enumerate(model.graph.output[0].type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):  # not every operator tells whose length it is
                dim.dim_param = signature.output_names.get(i, f"{OUTPUT}_{i}")
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConfigError(f"the ONNX nodes of the model's layers do not fit together: {str(error).strip()}") from error
    del model.graph.input[1:]
    return model


def _describe_outside(onnx: Any, tensor: Any, file_name: str, offset: int, length: int) -> None:
    """Say where the values of a tensor lie."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file_name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _append(draft: WholeFile, values: NDArray[np.float32]) -> tuple[int, int]:
    """Write an array at the next aligned place of a file; returns where it begins and how many bytes it has."""
    draft.file.write(b"\0" * (-draft.file.tell() % _ALIGNMENT))
    offset = draft.file.tell()
    if values.size:
        draft.file.write(values.reshape(-1).view(np.uint8).data)
    return offset, values.nbytes
