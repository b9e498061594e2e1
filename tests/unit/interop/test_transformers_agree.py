"""Our families and those of transformers make the same of the same weights, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.models.family import DataShape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

BATCH, LENGTH, TOKENS, CLASSES = 3, 11, 37, 5
TEXT = DataShape((LENGTH,), num_classes=TOKENS)
LABELLED = DataShape((LENGTH,), num_classes=CLASSES, id_counts=(TOKENS,))


def gpt2(**others: Any) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=TOKENS, n_embd=20, n_layer=3, n_head=5, n_positions=13, **others)
    )


def llama(**others: Any) -> Any:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 35}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=TOKENS, max_position_embeddings=13, **sizes, **others))


def bert(kind: str, **others: Any) -> Any:
    sizes = {"hidden_size": 15, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 31}
    config = transformers.BertConfig(vocab_size=TOKENS, max_position_embeddings=13, pad_token_id=1, **sizes, **others)
    return getattr(transformers, kind)(config)


GPT = {"family": "gpt", "width": 20, "num_layers": 3, "num_heads": 5, "context": 13}
LLAMA = {"family": "llama", "width": 24, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "intermediate_size": 35, "context": 13}
BERT = {"family": "bert", "width": 15, "num_layers": 3, "num_heads": 3, "intermediate_size": 31, "context": 13, "pad_token": 1}

CASES: dict[str, tuple[ModelConfig, DataShape, Callable[[], Any]]] = {
    "gpt2": (ModelConfig(**GPT), TEXT, gpt2),
    "gpt2-own-head": (
        ModelConfig(**GPT, tied="no", norm_epsilon=1e-3, intermediate_size=31),
        TEXT,
        lambda: gpt2(tie_word_embeddings=False, layer_norm_epsilon=1e-3, n_inner=31),
    ),
    "llama": (ModelConfig(**LLAMA), TEXT, llama),
    "llama-tied": (
        ModelConfig(**LLAMA, tied="yes", norm_epsilon=1e-2, rope_theta=500.0),
        TEXT,
        lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-2, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    ),
    "llama-3.1": (
        ModelConfig(**LLAMA, rope_theta=50.0, rope_scaling=(8.0, 1.0, 4.0, 40.0)),
        TEXT,
        lambda: llama(
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 40,
            }
        ),
    ),
    "bert-classifier": (
        ModelConfig(**BERT),
        LABELLED,
        lambda: bert("BertForSequenceClassification", num_labels=CLASSES),
    ),
    "bert-masked": (ModelConfig(**BERT, task="masked_language_model"), TEXT, lambda: bert("BertForMaskedLM")),
    "bert-masked-own-head": (
        ModelConfig(**BERT, task="masked_language_model", tied="no"),
        TEXT,
        lambda: bert("BertForMaskedLM", tie_word_embeddings=False),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def inputs() -> NDArray[np.int64]:
    ids = np.random.default_rng(3).integers(2, TOKENS, (BATCH, LENGTH))
    ids[1, 7:] = 1  # padding, for BERT
    return ids


def their_logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    mask = {"attention_mask": torch.tensor(ids != 1)} if model.config.model_type == "bert" else {}
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids), **mask).logits.numpy()


def make_theirs(make: Callable[[], Any]) -> Any:
    """Return their model with noise on all weights, norms and biases too."""
    torch.manual_seed(4)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@every_case
@pytest.mark.parametrize("shard_size", ["1GB", "5KB"])
def test_their_weights_in_our_model(tmp_path: Path, tools: Any, case: Any, shard_size: str) -> None:
    config, data, make = case
    theirs = make_theirs(make)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "5KB")
    model = tools.declare(config, data)
    ours = tools.run_model(model, tools.read_values(model, config, tmp_path), inputs())
    np.testing.assert_allclose(ours, their_logits(theirs, inputs()), atol=1e-4, rtol=1e-4)
    assert np.abs(ours).max() > 0.05


@every_case
def test_our_weights_in_their_model(tmp_path: Path, tools: Any, case: Any) -> None:
    config, data, make = case
    model = tools.declare(config, data)
    values = tools.random_values(model)
    make_name_map(model, config).export(values.get, tmp_path / "exported")
    theirs, info = type(make()).from_pretrained(tmp_path / "exported", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not set(info[kind]) - {"cls.predictions.bias"}, kind  # unused where the head has a bias of its own
    np.testing.assert_allclose(their_logits(theirs, inputs()), tools.run_model(model, values, inputs()), atol=1e-4, rtol=1e-4)
    written = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert written == ["config.json", "model.safetensors"]
    back = tools.read_values(model, config, tmp_path / "exported")
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_files_of_the_part_without_a_head(tmp_path: Path, tools: Any, family: str) -> None:
    """`GPT2Model` and `LlamaModel` save the same tensors without the prefix."""
    config = ModelConfig(**{"gpt": GPT, "llama": LLAMA}[family], **({"tied": "yes"} if family == "llama" else {}))
    theirs = make_theirs(gpt2 if family == "gpt" else lambda: llama(tie_word_embeddings=True))
    theirs.base_model.save_pretrained(tmp_path)
    model = tools.declare(config, TEXT)
    ours = tools.run_model(model, tools.read_values(model, config, tmp_path), inputs())
    np.testing.assert_allclose(ours, their_logits(theirs, inputs()), atol=1e-4, rtol=1e-4)


def test_auto_classes_take_our_exports(tmp_path: Path, tools: Any) -> None:
    for name, kind in (
        ("gpt2", transformers.AutoModelForCausalLM),
        ("llama", transformers.AutoModelForCausalLM),
        ("bert-classifier", transformers.AutoModelForSequenceClassification),
        ("bert-masked", transformers.AutoModelForMaskedLM),
    ):
        config, data, make = CASES[name]
        model = tools.declare(config, data)
        make_name_map(model, config).export(tools.random_values(model).get, tmp_path / name)
        assert type(kind.from_pretrained(tmp_path / name)) is type(make())
