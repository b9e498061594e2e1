"""Random models as ONNX files, run by onnxruntime and compared with our own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.interop.onnx_export import export_onnx
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.layer import Layer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

STEP = 17


def random_inputs(model: ModelSpec, batch: int, length: int = 0) -> Any:
    """Return raw inputs; ids have padding where the model knows any, one sample nothing else."""
    random, shape = np.random.default_rng(batch), (batch, *model.data.input_shape)
    if model.input_kind == "values":
        return random.normal(3, 2, shape).astype(np.float32)
    if model.data.input_shape == (2,):
        return np.stack([random.integers(0, count, batch) for count in model.data.id_counts], axis=1)
    ids = random.integers(2, 37, (batch, length or shape[1]))
    if model.pad_id is not None:
        ids[0], ids[-1, 4:] = model.pad_id, model.pad_id
    return ids


def random_normalisation(model: ModelSpec) -> Normalisation:
    random, shape = np.random.default_rng(6), model.data.input_shape
    return Normalisation(random.normal(3, 1, shape).astype(np.float32), random.uniform(0.5, 2, shape).astype(np.float32))


def make_values(tools: Any, model: ModelSpec) -> dict[str, Any]:
    """Return random weights, large enough for differences to show, and running statistics that are neither 0 nor 1."""
    random = np.random.default_rng(7)
    values: dict[str, Any] = tools.random_values(model)
    for name, value in values.items():
        if name.endswith("running_var"):
            value[...] = random.uniform(0.3, 3, value.shape)
        else:
            value += 0.2 * random.standard_normal(value.shape).astype(np.float32)
    return values


def run_file(path: Path, x: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x})[0]


def check_model(tools: Any, model: ModelSpec, path: Path, normalisation: Normalisation, *inputs: Any) -> Any:
    """Export a model, and compare what the file makes of raw inputs; returns the graph."""
    values, largest = make_values(tools, model), 0.0
    export_onnx(model, normalisation, values.get, path, STEP)
    for x in inputs:
        normalised = normalisation.apply(x) if model.input_kind == "values" else x
        ours = tools.run_model(model, values, normalised)
        theirs = run_file(path, x)
        assert theirs.dtype == np.float32 and theirs.shape == ours.shape
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
        largest = max(largest, float(np.abs(ours).max()))
    assert largest > 0.05
    found = onnx.load(path)
    onnx.checker.check_model(found, full_check=True)
    return found


def values_model(shape: tuple[int, ...], *layers: Layer) -> ModelSpec:
    return ModelSpec("test", TASKS["regression"], DataShape(shape, label_shape=(1,)), layers)
