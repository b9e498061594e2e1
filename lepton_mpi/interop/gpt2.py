"""Names of `GPT2LMHeadModel` (transformers): attention's three matrices are one tensor, and all matrices are [inputs, outputs]."""

from __future__ import annotations

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.name_map import Entry, NameMap, translate
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.models.gpt import gpt_sizes
from lepton_mpi.nn.parameter import ParameterSpec

_PREFIX = "transformer."
_OUTER = {
    "embed": "transformer.wte",
    "embed_positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
_BLOCK = {
    "norm1": "ln_1",
    "attention.q_proj": "attn.c_attn",
    "attention.k_proj": "attn.c_attn",
    "attention.v_proj": "attn.c_attn",
    "attention.o_proj": "attn.c_proj",
    "norm2": "ln_2",
    "feed_forward.fc1": "mlp.c_fc",
    "feed_forward.fc2": "mlp.c_proj",
}
_PARTS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
# Causal masks, which old versions kept with the weights.
_MASKS = r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"


def gpt2_map(model: ModelSpec, config: ModelConfig) -> NameMap:
    """Return the names of a model of the family gpt. Local."""
    sizes = gpt_sizes(config, model.data)
    return NameMap(
        tuple(_entry(spec) for spec in model.parameters),
        ignored=(_MASKS, r"lm_head\.weight") if sizes.tied else (_MASKS,),
        model_type="gpt2",
        decisive={
            "n_head": sizes.num_heads,
            "layer_norm_epsilon": sizes.norm_epsilon,
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        config={
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "vocab_size": sizes.vocab_size,
            "n_positions": sizes.context,
            "n_embd": sizes.width,
            "n_layer": sizes.num_layers,
            "n_head": sizes.num_heads,
            "n_inner": sizes.intermediate_size,
            "layer_norm_epsilon": sizes.norm_epsilon,
            "embd_pdrop": sizes.dropout,
            "attn_pdrop": sizes.dropout,
            "resid_pdrop": sizes.dropout,
            "tie_word_embeddings": sizes.tied,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    )


def _entry(spec: ParameterSpec) -> Entry:
    theirs = translate(spec.name, _OUTER, _BLOCK, f"{_PREFIX}h")
    in_block = spec.name.startswith("blocks.")
    return Entry(
        spec,
        theirs,
        transposed=in_block and len(spec.shape) == 2,
        part=_PARTS.get(spec.name.split(".")[-2], 0),
        aliases=(theirs.removeprefix(_PREFIX),) if theirs.startswith(_PREFIX) else (),
    )
