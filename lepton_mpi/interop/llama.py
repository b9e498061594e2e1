"""Names of `LlamaForCausalLM` (transformers)."""

from __future__ import annotations

from dataclasses import asdict

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.name_map import Entry, NameMap, translate
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.models.llama import llama_sizes
from lepton_mpi.nn.parameter import ParameterSpec
from lepton_mpi.ops.rotary import Llama3Scaling

_PREFIX = "model."
_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_BLOCK = {
    "norm1": "input_layernorm",
    **{f"attention.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    "norm2": "post_attention_layernorm",
    **{f"feed_forward.{name}": f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
# Tables that old versions kept with the weights.
_FREQUENCIES = r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"


def llama_map(model: ModelSpec, config: ModelConfig) -> NameMap:
    """Return the names of a model of the family llama. Local."""
    sizes = llama_sizes(config, model.data)
    return NameMap(
        tuple(_entry(spec) for spec in model.parameters),
        ignored=(_FREQUENCIES, r"lm_head\.weight") if sizes.tied else (_FREQUENCIES,),
        model_type="llama",
        decisive={
            "num_attention_heads": sizes.num_heads,
            "head_dim": (sizes.head_dim, None),
            "rms_norm_eps": sizes.norm_epsilon,
            "hidden_act": "silu",
            # Version 5 of transformers has rope_parameters, older ones have the other two.
            "rope_theta": sizes.rope_theta,
            "rope_parameters.rope_theta": sizes.rope_theta,
            **_decisive_scaling(sizes.rope_scaling),
        },
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": sizes.vocab_size,
            "max_position_embeddings": sizes.context,
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "num_key_value_heads": sizes.num_kv_heads,
            "head_dim": sizes.head_dim,
            "intermediate_size": sizes.intermediate_size,
            "rms_norm_eps": sizes.norm_epsilon,
            "rope_theta": sizes.rope_theta,
            "rope_scaling": _scaling(sizes.rope_scaling) if sizes.rope_scaling else None,
            "rope_parameters": {"rope_theta": sizes.rope_theta} | _scaling(sizes.rope_scaling),
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": sizes.dropout,
            "tie_word_embeddings": sizes.tied,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    )


def _scaling(scaling: Llama3Scaling | None) -> dict[str, object]:
    """Return what transformers calls a stretch of rotary positions."""
    return {"rope_type": "default"} if scaling is None else {"rope_type": "llama3", **asdict(scaling)}


def _decisive_scaling(scaling: Llama3Scaling | None) -> dict[str, object]:
    """Return what a config.json must say of it, in the form of version 5 and in the older one."""
    facts = _scaling(scaling)
    expected = {f"rope_parameters.{name}": value for name, value in facts.items()}
    return expected | (
        {"rope_scaling": None} if scaling is None else {f"rope_scaling.{name}": value for name, value in facts.items()}
    )


def _entry(spec: ParameterSpec) -> Entry:
    theirs = translate(spec.name, _OUTER, _BLOCK, f"{_PREFIX}layers")
    return Entry(spec, theirs, aliases=(theirs.removeprefix(_PREFIX),) if theirs.startswith(_PREFIX) else ())
