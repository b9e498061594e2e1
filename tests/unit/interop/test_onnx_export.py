"""Exported graphs, run by onnxruntime, make what our models make of the same weights and raw inputs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import FAMILIES, TEXT
from onnx_runs import (
    STEP,
    check_model,
    make_values,
    onnx,
    random_inputs,
    random_normalisation,
    run_file,
    values_model,
)

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, ConfigError
from lepton_mpi.interop import onnx_file
from lepton_mpi.interop.onnx_export import build_graph, export_onnx
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.runtime.whole_file import WholeFile


@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
def test_every_family(tmp_path: Path, tools: Any, case: tuple[ModelConfig, DataShape]) -> None:
    model = tools.declare(*case)
    inputs = [random_inputs(model, batch) for batch in (1, 5)]
    found = check_model(tools, model, tmp_path / "new" / "model.onnx", random_normalisation(model), *inputs)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]
    (source,), (target,) = found.graph.input, found.graph.output
    assert (source.name, target.name) == ("input", "output")
    dims = [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim]
    is_text = model.family in ("gpt", "llama", "bert")
    length = "length" if is_text or model.task.name == "ranking" else None
    assert dims == ["batch", *([length] if length else model.data.input_shape)]
    assert source.type.tensor_type.elem_type == (onnx.TensorProto.FLOAT if model.input_kind == "values" else onnx.TensorProto.INT64)
    weights = {tensor.name: tuple(tensor.dims) for tensor in found.graph.initializer}
    assert {spec.name: spec.shape for spec in model.parameters}.items() <= weights.items()
    notes = {entry.key: entry.value for entry in found.metadata_props}
    assert (notes["family"], notes["task"], notes["step"]) == (model.family, model.task.name, str(STEP))
    assert ("values" in notes["output"]) == (model.task.name == "regression")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet", ["batch", 5]),
        ("unet", ["batch", 8, 12, 3]),
        ("llama", ["batch", "length", 37]),
        ("bert", ["batch", 5]),
        ("recommender-mlp", ["batch", 1]),
        ("recommender-ranking", ["batch", "output_1"]),
    ],
)
def test_declared_shape_of_the_output(tmp_path: Path, tools: Any, name: str, expected: list[int | str]) -> None:
    model = tools.declare(*FAMILIES[name])
    export_onnx(model, random_normalisation(model), make_values(tools, model).get, tmp_path / "m.onnx", STEP)
    (target,) = onnx.load(tmp_path / "m.onnx").graph.output
    assert [dim.dim_param or dim.dim_value for dim in target.type.tensor_type.shape.dim] == expected


@pytest.mark.parametrize("name", ["gpt", "llama", "bert", "bert-masked"])
def test_sequences_may_be_shorter(tmp_path: Path, tools: Any, name: str) -> None:
    model = tools.declare(*FAMILIES[name])
    check_model(tools, model, tmp_path / "m.onnx", Normalisation.identity(), *(random_inputs(model, 2, n) for n in (7, 1)))


def test_ranking_of_many_items_for_a_user(tmp_path: Path, tools: Any) -> None:
    model = tools.declare(*FAMILIES["recommender-ranking"])
    ids = np.array([[6, 0, 12, 3, 3, 7], [0, 1, 2, 4, 8, 11], [6, 6, 5, 4, 3, 2]])
    check_model(tools, model, tmp_path / "m.onnx", Normalisation.identity(), ids)
    assert run_file(tmp_path / "m.onnx", ids).shape == (3, 5)


def test_normalisation_by_one_number(tmp_path: Path, tools: Any) -> None:
    model = tools.declare(*FAMILIES["linear"])
    one = Normalisation(np.float32(2.5), np.float32(0.3))
    check_model(tools, model, tmp_path / "m.onnx", one, random_inputs(model, 4))
    assert not {"Sub", "Div"} & {node.operator for node in build_graph(model, Normalisation.identity()).nodes}


def test_images_stay_channels_first_between_layers(tools: Any) -> None:
    """Around 20 layers of convolutions there is nothing to transpose but a head that wants channels last."""
    for name, expected in (("resnet-18", 0), ("unet", 1), ("unet-last", 2)):
        nodes = build_graph(tools.declare(*FAMILIES[name]), Normalisation.identity()).nodes
        assert sum(node.operator == "Transpose" for node in nodes) == expected, name


def test_missing_package(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is gathered before the error, since other ranks take part in that."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = tools.declare(*FAMILIES["mlp"])
    values, gathered = tools.random_values(model), []
    with pytest.raises(ConfigError, match=r"pip install lepton_mpi\[onnx\]"):
        export_onnx(
            model, Normalisation.identity(), lambda name: (gathered.append(name), values[name])[1], tmp_path / "m.onnx", STEP
        )
    assert gathered == [spec.name for spec in model.parameters]


def test_model_without_parameters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        export_onnx(values_model((3,), ReLU("r")), Normalisation.identity(), {}.get, tmp_path / "m.onnx", STEP)


def test_other_ranks_gather_in_the_order_of_the_model(tmp_path: Path, tools: Any) -> None:
    model = tools.declare(*FAMILIES["gpt"])
    gathered: list[str] = []
    export_onnx(model, Normalisation.identity(), gathered.append, tmp_path / "m.onnx", STEP)
    assert gathered == [spec.name for spec in model.parameters]
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_there_once(tmp_path: Path, tools: Any) -> None:
    model = tools.declare(replace(FAMILIES["gpt"][0], tied="yes"), TEXT)
    export_onnx(model, Normalisation.identity(), tools.random_values(model).get, tmp_path / "m.onnx", STEP)
    names = [tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert names.count("embed.weight") == 1
    assert not {"head.weight"} & set(names)


def test_many_weights_lie_in_a_file_beside(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST_INSIDE", 2000)
    path = tmp_path / "m.onnx"
    path.write_text("old")
    (tmp_path / "m.onnx.data").write_text("old")
    model = tools.declare(*FAMILIES["llama"])
    check_model(tools, model, path, Normalisation.identity(), random_inputs(model, 2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 4 * model.num_parameters


def test_no_graph_is_left_with_the_weights_of_another(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST_INSIDE", 2000)
    commit = WholeFile.commit

    def fails_for_the_graph(draft: Any) -> None:
        if draft.path.suffix == ".onnx":
            raise OSError(28, "No space left on device")
        commit(draft)

    monkeypatch.setattr(WholeFile, "commit", fails_for_the_graph)
    (tmp_path / "m.onnx").write_text("old")
    model = tools.declare(*FAMILIES["llama"])
    with pytest.raises(CheckpointError, match="No space left"):
        export_onnx(model, Normalisation.identity(), tools.random_values(model).get, tmp_path / "m.onnx", STEP)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx.data"]


def test_error_of_the_file(tmp_path: Path, tools: Any) -> None:
    """What was there stays, and all is gathered."""
    model = tools.declare(*FAMILIES["mlp"])
    values, gathered = tools.random_values(model), []

    def gather(name: str) -> Any:
        gathered.append(name)
        return values[name]

    (tmp_path / "file").write_text("old")
    with pytest.raises(CheckpointError, match=r"m\.onnx: cannot write the model"):
        export_onnx(model, Normalisation.identity(), gather, tmp_path / "file" / "m.onnx", STEP)
    assert gathered == [spec.name for spec in model.parameters]

    def fails_at_last(name: str) -> Any:
        if name == "layers.2.bias":
            raise OSError(28, "No space left on device")
        return values[name]

    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(CheckpointError, match="No space left"):
        export_onnx(model, Normalisation.identity(), fails_at_last, tmp_path / "m.onnx", STEP)
    assert (tmp_path / "m.onnx").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.onnx"]
