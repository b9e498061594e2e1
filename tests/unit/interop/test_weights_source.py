"""Where tensors come from: a file, a folder, or an index of several files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.safetensors_file import SafetensorsWriter
from lepton_mpi.interop.weights_source import open_weights


def save(path: Path, **tensors: Any) -> None:
    arrays = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    with SafetensorsWriter(path, {name: values.shape for name, values in arrays.items()}) as writer:
        for name, values in arrays.items():
            writer.write(name, values)


def save_index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_a_file_and_the_folder_it_lies_in(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", x=[[1, 2, 3], [4, 5, 6]])
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        with open_weights(path) as source:
            assert source.names == ("x",)
            assert source.shape("x") == (2, 3)
            np.testing.assert_array_equal(source.read("x", (1, 1), (1, 2)), [[5, 6]])
            assert "x" in source
            assert "y" not in source
            assert source.config() is None


def test_shards_are_opened_when_they_are_needed(tmp_path: Path) -> None:
    save(tmp_path / "model-1.safetensors", a=[1, 2], b=[3])
    index = save_index(tmp_path, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    for path in (tmp_path, index):
        with open_weights(path) as source:
            assert source.names == ("a", "b", "c")
            np.testing.assert_array_equal(source.read("a", (1,), (1,)), [2])
            with pytest.raises(CheckpointError, match=r"model-2\.safetensors: cannot read"):
                source.shape("c")
    save(tmp_path / "model-2.safetensors", c=[[7]])
    with open_weights(tmp_path) as source:
        assert source.shape("c") == (1, 1)


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", x=[1])
    save_index(tmp_path, {"y": "other.safetensors"})
    assert open_weights(tmp_path).names == ("x",)


def test_a_shard_that_lacks_a_tensor(tmp_path: Path) -> None:
    save(tmp_path / "one.safetensors", a=[1])
    save_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one\.safetensors as the file of tensor b, which does not hold it"):
        open_weights(tmp_path).shape("a")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b", "..", ".", "", 3, None, "a\0b"])
def test_files_outside_of_the_folder_are_refused(tmp_path: Path, file: Any) -> None:
    save_index(tmp_path, {"a": file})
    with pytest.raises(CheckpointError, match="tensor a: expected the name of a file in the same folder"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read it as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected weight_map"),
        ('{"weight_map": []}', "weight_map"),
    ],
)
def test_a_damaged_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found neither"):
        open_weights(tmp_path)
    with pytest.raises(CheckpointError, match="there is none"):
        open_weights(tmp_path / "absent.safetensors")


def test_a_config_beside_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", x=[1])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert open_weights(tmp_path).config() == {"model_type": "gpt2"}
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot read it as JSON"):
        open_weights(tmp_path).config()
