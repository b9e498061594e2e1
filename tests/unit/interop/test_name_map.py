"""Weights under other names: what fits, slices of what is asked for, and exports from several ranks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.interop.safetensors_file import SafetensorsFile, SafetensorsWriter
from lepton_mpi.interop.weights_source import WeightsSource, open_weights
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.parameter import cut_parameter

TEXT = DataShape((5,), num_classes=13)
LABELLED = DataShape((5,), num_classes=3, id_counts=(13,))
SIZES = {"width": 12, "num_layers": 2, "num_heads": 3, "context": 7, "intermediate_size": 11}
GPT, LLAMA, BERT = (ModelConfig(family=family, **SIZES) for family in ("gpt", "llama", "bert"))
MLP = ModelConfig(family="mlp", hidden_sizes=(7, 5))
DATA = {"gpt": TEXT, "llama": TEXT, "bert": LABELLED, "mlp": DataShape((3, 3), 4)}
every_family = pytest.mark.parametrize("config", [GPT, LLAMA, BERT, MLP], ids=lambda config: config.family)


class CountingSource(WeightsSource):
    """Counts the values that are read."""

    def __init__(self, path: Path) -> None:
        file = SafetensorsFile(path)
        super().__init__(path, path.parent, dict.fromkeys(file.shapes, path), [file])
        self.num_read = 0

    def read(self, name: str, starts: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
        self.num_read += math.prod(shape)
        return super().read(name, starts, shape)


def export(tools: Any, config: ModelConfig, path: Path, seed: int = 0) -> tuple[ModelSpec, dict[str, NDArray[np.float32]]]:
    """Write random weights; return their model and them."""
    model = tools.declare(config, DATA[config.family])
    values = tools.random_values(model, seed)
    make_name_map(model, config).export(values.get, path)
    return model, values


def edit(path: Path, **changes: Any) -> None:
    """Write a file again with tensors added, replaced, or (None) without them; "__" stands for a dot."""
    file = SafetensorsFile(path)
    tensors = {name: file.read(name, (0,) * len(shape), shape) for name, shape in file.shapes.items()}
    tensors |= {name.replace("__", "."): change for name, change in changes.items()}
    tensors = {name: values for name, values in tensors.items() if values is not None}
    with SafetensorsWriter(path, {name: values.shape for name, values in tensors.items()}) as writer:
        for name, values in tensors.items():
            writer.write(name, values)


def fit(tools: Any, config: ModelConfig, path: Path) -> tuple[str, ...]:
    model = tools.declare(config, DATA[config.family])
    with open_weights(path) as source:
        return make_name_map(model, config).require_fit(source)


@every_family
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_blocks_read_what_they_hold_and_no_more(tmp_path: Path, tools: Any, config: ModelConfig, shards: int) -> None:
    path = tmp_path / "w.safetensors"
    model, values = export(tools, config, path)
    names = make_name_map(model, config)
    with CountingSource(path) as source:
        assert names.require_fit(source) == ()
        assert source.num_read == 0
        for spec in model.parameters:
            for shard in range(shards):
                block = cut_parameter(spec, shards, shard)
                at = tuple(slice(start, start + size) for start, size in zip(block.starts, block.shape, strict=True))
                middle = block.shape[0] // 2
                for rows in (None, (0, middle), (middle, block.shape[0]), (middle, middle)):
                    source.num_read = 0
                    expected = values[spec.name][at][slice(*rows) if rows else slice(None)]
                    found = names.read_block(source, block, rows)
                    np.testing.assert_array_equal(found, expected, err_msg=spec.name)
                    assert found.dtype == np.float32
                    assert found.flags.c_contiguous
                    assert source.num_read == expected.size


def test_tensors_of_gpt2_are_fused_and_turned(tmp_path: Path, tools: Any) -> None:
    path = tmp_path / "w.safetensors"
    _, values = export(tools, GPT, path)
    file = SafetensorsFile(path)
    assert file.shapes["transformer.h.1.attn.c_attn.weight"] == (12, 36)
    assert file.shapes["transformer.h.1.mlp.c_fc.weight"] == (12, 11)
    parts = [values[f"blocks.1.attention.{part}_proj.weight"].T for part in "qkv"]
    np.testing.assert_array_equal(file.read("transformer.h.1.attn.c_attn.weight", (0, 0), (12, 36)), np.hstack(parts))
    parts = [values[f"blocks.1.attention.{part}_proj.bias"] for part in "qkv"]
    np.testing.assert_array_equal(file.read("transformer.h.1.attn.c_attn.bias", (0,), (36,)), np.hstack(parts))
    assert "lm_head.weight" not in file.shapes  # tied: written once


def test_other_families_keep_their_names(tmp_path: Path, tools: Any) -> None:
    export(tools, MLP, tmp_path / "folder")
    assert list(SafetensorsFile(tmp_path / "folder" / "model.safetensors").shapes) == [
        f"layers.{i}.{what}" for i in range(3) for what in ("weight", "bias")
    ]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


MISSING, SHAPE, EXTRA = "is missing", "expected shape", "belongs to no parameter"


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GPT, {"transformer__h__0__ln_2__weight": None, "transformer__ln_f__bias": None}, rf"h\.0\.ln_2\.weight of .*{MISSING}"),
        (GPT, {"transformer__wte__weight": np.zeros((13, 11))}, rf"wte\.weight: {SHAPE} \(13, 12\), found \(13, 11\)"),
        (GPT, {"transformer__h__1__attn__c_attn__weight": np.zeros((36, 12))}, rf"{SHAPE} \(12, 36\), found \(36, 12\)"),
        (GPT, {"transformer__h__2__ln_1__weight": np.zeros(12)}, rf"h\.2\.ln_1\.weight {EXTRA}"),
        (GPT, {"transformer__h__1__attn__c_attn__bias2": np.zeros(1)}, EXTRA),
        (LLAMA, {"lm_head__weight": None}, rf"lm_head\.weight of shape \(13, 12\).* {MISSING}.*model\.tied"),
        (LLAMA, {"model__layers__1__self_attn__k_proj__weight": np.zeros((6, 12))}, rf"{SHAPE} \(12, 12\), found \(6, 12\)"),
        (LLAMA, {"model__layers__0__self_attn__q_proj__bias": np.zeros(12)}, EXTRA),
        (BERT, {"bert__embeddings__LayerNorm__bias": None}, rf"embeddings\.LayerNorm\.bias .*{MISSING}"),
        (BERT, {"classifier__weight": np.zeros((2, 12))}, rf"classifier\.weight: {SHAPE} \(3, 12\), found \(2, 12\)"),
        (MLP, {"layers__1__weight": None}, rf"layers\.1\.weight of .*{MISSING}"),
        (MLP, {"layers__9__weight": np.zeros((2, 2))}, rf"layers\.9\.weight {EXTRA}"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    tmp_path: Path, tools: Any, config: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    export(tools, config, path)
    edit(path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(tools, config, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "extras"),
    [
        (GPT, ["transformer.h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight"]),
        (LLAMA, ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]),
        (BERT, ["bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight"]),
    ],
    ids=["gpt", "llama", "bert"],
)
def test_what_files_are_known_to_hold_besides(tmp_path: Path, tools: Any, config: ModelConfig, extras: list[str]) -> None:
    path = tmp_path / "w.safetensors"
    export(tools, config, path)
    edit(path, **dict.fromkeys(extras, np.zeros((2, 3))))
    assert fit(tools, config, path) == ()


def test_a_classifier_may_be_trained_anew(tmp_path: Path, tools: Any) -> None:
    path = tmp_path / "w.safetensors"
    model, _ = export(tools, BERT, path)
    edit(path, classifier__weight=None, classifier__bias=None, bert__pooler__dense__weight=None)
    assert fit(tools, BERT, path) == ("pooler.weight", "classifier.weight", "classifier.bias")
    with open_weights(path) as source, pytest.raises(CheckpointError, match=r"classifier\.weight for the parameter .* is missing"):
        make_name_map(model, BERT).read_block(source, cut_parameter(model.parameters[-2], 1, 0))


def test_running_statistics_may_be_missing(tmp_path: Path, tools: Any) -> None:
    norm = BatchNorm2d("norm", 3)
    model = ModelSpec("mine", TASKS["classification"], DataShape((2, 2, 3), 3), (norm,))
    statistics = {spec.name for spec in norm.parameters if spec.role == "statistic"}
    assert statistics
    with SafetensorsWriter(
        tmp_path / "w.safetensors", {"norm.weight": (3,), "norm.bias": (3,), "norm.num_batches_tracked": ()}
    ) as writer:
        writer.write("norm.weight", np.ones(3))
        writer.write("norm.bias", np.ones(3))
        writer.write("norm.num_batches_tracked", np.float32(7))
    with open_weights(tmp_path / "w.safetensors") as source:
        assert set(make_name_map(model, ModelConfig(family="mine")).require_fit(source)) == statistics


def test_the_first_published_names_of_norms(tmp_path: Path, tools: Any) -> None:
    path = tmp_path / "w.safetensors"
    model, values = export(tools, BERT, path)
    file = SafetensorsFile(path)
    norms = [name for name in file.shapes if "LayerNorm" in name]
    assert len(norms) == 10
    renamed = {name: re.sub("weight$", "gamma", re.sub("bias$", "beta", name)) for name in norms}
    edit(path, **{new: file.read(old, (0,), (12,)) for old, new in renamed.items()}, **dict.fromkeys(norms))
    for name, value in tools.read_values(model, BERT, path).items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)


def test_weights_of_another_kind_of_number(tmp_path: Path, tools: Any) -> None:
    path = tmp_path / "w.safetensors"
    export(tools, MLP, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(CheckpointError, match=r"tensor layers\.0\.weight: expected one of F64, F32, F16, BF16, got I32"):
        fit(tools, MLP, path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GPT, {"n_head": 6}, "says n_head = 6, this model has 3"),
        (GPT, {"model_type": "llama"}, "says model_type = 'llama', this model has 'gpt2'"),
        (GPT, {"activation_function": "relu"}, "says activation_function = 'relu'"),
        (LLAMA, {"rms_norm_eps": 1e-5}, "says rms_norm_eps = 1e-05, this model has 1e-06"),
        (LLAMA, {"rope_theta": 5e5}, "says rope_theta = 500000.0"),
        (
            LLAMA,
            {"rope_parameters": {"rope_type": "llama3"}},
            r"says rope_parameters\.rope_type = 'llama3', this model has 'default'",
        ),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2}}, "says rope_scaling = "),
        (BERT, {"hidden_act": "gelu_new"}, "says hidden_act = 'gelu_new', this model has 'gelu'"),
    ],
)
def test_what_weights_do_not_show_must_agree(
    tmp_path: Path, tools: Any, config: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    export(tools, config, tmp_path)
    assert fit(tools, config, tmp_path) == ()
    written = tmp_path / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        fit(tools, config, tmp_path)


def test_another_programs_config_json_is_none_of_ours(tmp_path: Path, tools: Any) -> None:
    export(tools, GPT, tmp_path)
    (tmp_path / "config.json").write_text('{"n_head": 99}')
    assert fit(tools, GPT, tmp_path) == ()


@every_family
def test_all_ranks_gather_the_same_and_one_writes(tmp_path: Path, tools: Any, config: ModelConfig) -> None:
    model = tools.declare(config, DATA[config.family])
    values = tools.random_values(model)
    calls: list[list[str]] = [[], []]
    for rank in range(2):

        def gather(name: str, rank: int = rank) -> Any:
            calls[rank].append(name)
            return values[name] if rank == 0 else None

        make_name_map(model, config).export(gather, tmp_path / str(rank) / "w.safetensors")
    assert calls[0] == calls[1]
    assert sorted(calls[0]) == sorted(values)
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["w.safetensors"]
    assert not (tmp_path / "1").exists()
    for name, value in tools.read_values(model, config, tmp_path / "0" / "w.safetensors").items():
        np.testing.assert_array_equal(value, values[name], err_msg=name)


def test_a_file_that_cannot_be_written_fails_after_all_is_gathered(tmp_path: Path, tools: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    model = tools.declare(GPT, TEXT)
    values = tools.random_values(model)
    calls = []

    def gather(name: str) -> Any:
        calls.append(name)
        return values[name]

    with pytest.raises(CheckpointError, match="cannot write the weights"):
        make_name_map(model, GPT).export(gather, tmp_path / "file" / "w.safetensors")
    assert len(calls) == len(values)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    model, values = export(tools, GPT, path)
    before = path.read_bytes()
    real = SafetensorsWriter.write
    calls = []

    def write(self: SafetensorsWriter, name: str, array: Any) -> None:
        if name == "transformer.h.1.ln_1.weight":
            raise OSError(28, "No space left on device")
        real(self, name, array)

    def gather(name: str) -> Any:
        calls.append(name)
        return values[name] + 1

    monkeypatch.setattr(SafetensorsWriter, "write", write)
    with pytest.raises(CheckpointError, match="No space left on device"):
        make_name_map(model, GPT).export(gather, path)
    assert len(calls) == len(values)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
