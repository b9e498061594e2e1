"""export in one process: what an output's name means, what is written, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lepton_mpi.cli import export
from lepton_mpi.cli.arguments import ExportArguments, read_arguments
from lepton_mpi.cli.export import choose_kind, run_export
from lepton_mpi.config.schema import Config, ModelConfig
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, ConfigError
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.parameter import cut_parameter, initial_values
from lepton_mpi.runtime.mpi import start_mpi
from lepton_mpi.train.model import LeptonModel
from lepton_mpi.train.network import declare_model

RANDOM = np.random.default_rng(2)
Y = np.arange(30) % 3
X = RANDOM.normal(Y[:, None, None] * 20, 5, (30, 2, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Give a folder with a model of samples (2, 3), and its probabilities for X."""
    folder = tmp_path_factory.mktemp("trained")
    with LeptonModel((2, 3), 3, 8, 2, lr=0.05, batch_size=10, normalise="feature") as model:
        model.fit(X, Y, epochs=2, verbose=False)
        model.save(folder)
        return folder, model.predict_proba(X)


def run(*argv: object) -> None:
    arguments = read_arguments(["export", *map(str, argv)])
    assert isinstance(arguments, ExportArguments)
    run_export(start_mpi().Dup(), arguments)


def test_onnx_takes_raw_inputs(trained: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime")
    output = tmp_path / "new" / "model.onnx"
    for _ in range(2):  # the second time in place of the first file
        run(trained[0], output)
        line = f"wrote {output}: mlp of step-000000006, an ONNX graph that takes raw inputs, 4 tensors, 0.00 MiB\n"
        assert capsys.readouterr().out == line
    (logits,) = runtime.InferenceSession(output, providers=["CPUExecutionProvider"]).run(["output"], {"input": X})
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, trained[1], atol=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_safetensors(trained: tuple[Path, np.ndarray], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    run(trained[0], tmp_path / name)
    assert capsys.readouterr().out == f"wrote {tmp_path / name}: mlp of step-000000006, our own names, 4 tensors, 0.00 MiB\n"
    file = tmp_path / name if name.endswith(".safetensors") else tmp_path / name / "model.safetensors"
    shapes = {key: value.shape for key, value in safetensors.load_file(file).items()}
    assert shapes == {"layers.0.weight": (8, 6), "layers.0.bias": (8,), "layers.1.weight": (3, 8), "layers.1.bias": (3,)}


def test_transformers_get_a_folder_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig("gpt", width=12, num_layers=1, num_heads=3, context=7)
    model = declare_model(config, DataShape((7,), num_classes=11))
    values = {spec.name: initial_values(cut_parameter(spec, 1, 0), 0) for spec in model.parameters}
    network = SimpleNamespace(model=model, weights=SimpleNamespace(gather=values.get), grid=SimpleNamespace(free=lambda: None))
    restored: Any = SimpleNamespace(
        network=network, normalisation=Normalisation.identity(), checkpoint=Path("step-7"), state=SimpleNamespace(step=7)
    )
    monkeypatch.setattr(export, "restore_model", lambda *_: restored)
    run_export(start_mpi().Dup(), ExportArguments(tmp_path, Config(model=config), tmp_path / "folder"))
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"] == "gpt2"
    assert "gpt of step-7, names of transformers, 16 tensors, " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["m.pt", "m.onnx.gz", "v1.2", "m.ONNX"])
def test_names_that_tell_nothing(trained: tuple[Path, np.ndarray], tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot export to \.\w+: give FILE\.safetensors, FILE\.onnx, or a folder"):
        run(trained[0], tmp_path / name)


def test_folders(trained: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    assert choose_kind(tmp_path / "v1.2") == choose_kind(tmp_path / "free") == "folder"
    (tmp_path / "v1.2" / "file").write_text("")
    with pytest.raises(ConfigError, match=r"v1\.2: this folder is not empty"):
        run(trained[0], tmp_path / "v1.2")
    for name in ("m.onnx", "m.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="there is a folder of this name"):
            run(trained[0], tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="there is a file of this name"):
        run(trained[0], tmp_path / "file")


def test_missing_onnx(trained: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install lepton_mpi\[onnx\]"):
        run(trained[0], tmp_path / "m.onnx")
    assert choose_kind(tmp_path / "m.safetensors") == "safetensors"


@pytest.mark.parametrize("name", ["m.onnx", "m.safetensors", "folder"])
def test_output_that_cannot_be_written(trained: tuple[Path, np.ndarray], tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run(trained[0], tmp_path / "file" / name)


def test_command_line(trained: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="required: OUTPUT"):
        read_arguments(["export", str(trained[0])])
    arguments = read_arguments(["export", str(trained[0]), "m.onnx", "--grid.stages", "2"])
    assert isinstance(arguments, ExportArguments)
    assert (arguments.run, arguments.output, arguments.config.grid.stages) == (trained[0], Path("m.onnx"), 2)
