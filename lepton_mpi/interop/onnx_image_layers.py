"""What layers on images are in ONNX. Images have their channels last here and first there; `OnnxGraph.images` keeps both."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_mpi.interop.onnx_graph import OnnxGraph
from lepton_mpi.interop.onnx_layers import export_layer
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.conv2d import Conv2d
from lepton_mpi.nn.image_input import ImageInput
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from lepton_mpi.nn.upsample import Upsample
from lepton_mpi.ops.windows import Windows


@export_layer.register
def _image_input(layer: ImageInput, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    if layer.channels == "last":
        return x
    return graph.from_images(x if layer.channels == "first" else graph.add("Unsqueeze", x, graph.constant([1], np.int64)))


@export_layer.register
def _conv2d(layer: Conv2d, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    names = [spec.name for spec in layer.parameters]
    options = {**_window_options(layer.windows), "dilations": layer.windows.dilation, "group": layer.groups}
    return graph.from_images(graph.add("Conv", graph.images(x), *names, **options))


@export_layer.register
def _batch_norm(layer: BatchNorm2d, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    weight, bias, mean, variance = (spec.name for spec in layer.parameters)
    if len(shapes[0]) == 3:
        names = (weight, bias, mean, variance)
        return graph.from_images(graph.add("BatchNormalization", graph.images(x), *names, epsilon=layer.epsilon))
    deviation = graph.add("Sqrt", graph.add("Add", variance, graph.constant(layer.epsilon)))
    normalised = graph.add("Div", graph.add("Sub", x, mean), deviation)
    return graph.add("Add", graph.add("Mul", normalised, weight), bias)


@export_layer.register
def _max_pool(layer: MaxPool2d, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.from_images(graph.add("MaxPool", graph.images(x), **_window_options(layer.windows)))


@export_layer.register
def _avg_pool(layer: AvgPool2d, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    options = _window_options(layer.windows)
    return graph.from_images(graph.add("AveragePool", graph.images(x), count_include_pad=1, **options))


@export_layer.register
def _global_avg_pool(layer: GlobalAvgPool, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.add("Flatten", graph.add("GlobalAveragePool", graph.images(x)), axis=1)


@export_layer.register
def _upsample(layer: Upsample, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    scales = graph.constant([1, 1, layer.factor, layer.factor])
    # Pixel i of the output is pixel floor(i / factor) of the input.
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return graph.from_images(graph.add("Resize", graph.images(x), "", scales, **options))


def _window_options(windows: Windows) -> dict[str, Any]:
    return {"kernel_shape": windows.kernel, "strides": windows.stride, "pads": windows.padding * 2}
