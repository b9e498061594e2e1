"""Names of `BertForSequenceClassification` and `BertForMaskedLM` (transformers)."""

from __future__ import annotations

from typing import Any

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.name_map import Entry, NameMap, translate
from lepton_mpi.models.bert import NUM_TOKEN_TYPES, bert_sizes
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.models.transformer import TransformerSizes
from lepton_mpi.nn.parameter import ParameterSpec

_PREFIX = "bert."
_OUTER = {
    "embed": "bert.embeddings.word_embeddings",
    "embed_positions": "bert.embeddings.position_embeddings",
    "embed_types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "classifier": "classifier",
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
}
_BLOCK = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "feed_forward.fc1": "intermediate.dense",
    "feed_forward.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
# What norms were called in TensorFlow, and still are in the first published weights.
_OLD_NORMS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_BIAS = "cls.predictions.bias"


def bert_map(model: ModelSpec, config: ModelConfig) -> NameMap:
    """Return the names of a model of the family bert. Local.

    Pooler and classifier may be missing from a file: they are trained anew after pre-training on masked tokens.
    """
    sizes = bert_sizes(config, model.task, model.data)
    classifies = model.task.name == "classification"
    positions = r"(bert\.)?embeddings\.position_ids"
    other_heads = r"cls\..+" if classifies else r"(bert\.)?pooler\..+|classifier\..+|cls\.seq_relationship\..+"
    # The output bias has two names in files, and a tied output weight one of its own.
    own_head = (r"cls\.predictions\.(decoder\.)?bias", *((r"cls\.predictions\.decoder\.weight",) if sizes.tied else ()))
    return NameMap(
        tuple(_entry(spec, sizes.tied) for spec in model.parameters),
        ignored=(positions, other_heads, *own_head),
        model_type="bert",
        decisive={
            "num_attention_heads": sizes.num_heads,
            "layer_norm_eps": sizes.norm_epsilon,
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
        },
        config=_config(model, sizes, classifies),
    )


def _entry(spec: ParameterSpec, tied: bool) -> Entry:
    theirs = translate(spec.name, _OUTER, _BLOCK, f"{_PREFIX}encoder.layer")
    names = [theirs]
    if spec.name == "head.bias":
        names = [_BIAS, theirs] if tied else [theirs, _BIAS]
    for new, old in _OLD_NORMS.items():
        if theirs.endswith(new):
            names.append(theirs.removesuffix(new) + old)
    names += [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    return Entry(spec, names[0], aliases=tuple(names[1:]), optional=spec.name.startswith(("pooler.", "classifier.")))


def _config(model: ModelSpec, sizes: TransformerSizes, classifies: bool) -> dict[str, Any]:
    config = {
        "architectures": ["BertForSequenceClassification" if classifies else "BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.context,
        "type_vocab_size": NUM_TOKEN_TYPES,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.intermediate_size,
        "layer_norm_eps": sizes.norm_epsilon,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "pad_token_id": model.pad_id,
        "tie_word_embeddings": sizes.tied,
    }
    if classifies:
        labels = [f"LABEL_{i}" for i in range(model.data.num_classes)]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config["problem_type"] = "single_label_classification"
    return config
