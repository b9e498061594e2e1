"""Llama: a decoder with rotary positions, gated feed-forward layers and shared keys and values.

Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"; its weights fit transformers' LlamaForCausalLM.
"""

from __future__ import annotations

from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, Family, InputKind, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.models.transformer import (
    CONTEXT,
    INITIAL,
    TransformerSizes,
    dropout,
    gated_feed_forward_size,
    output_layer,
    pre_norm_block,
    transformer_sizes,
)
from lepton_mpi.nn.attention import Attention, Rotary
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.embedding import Embedding
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.rms_norm import RMSNorm
from lepton_mpi.nn.swiglu import SwiGLU


@final
class Llama(Family):
    """Rotary positions, RMS norms before attention and feed-forward, SwiGLU, no biases.

    Usual choices: width 384, num_layers 6, num_heads 6, num_kv_heads as many, context 256 (or the samples' length),
    intermediate_size 8/3 width rounded up to a multiple of 64, vocab_size of the data, norm_epsilon 1e-6, rope_theta 10000,
    rope_scaling none, an output layer with weights of its own. `dropout` applies to embeddings, attention weights and what
    blocks add.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_model",)
    input_kind: ClassVar[InputKind] = "ids"
    context: ClassVar[int] = CONTEXT

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        sizes = llama_sizes(config, data)
        embed = Chain(
            "embed",
            (
                Embedding("embed", sizes.vocab_size, sizes.width, initial=INITIAL, split=True),
                *dropout("embed_dropout", sizes.dropout),
            ),
        )
        head = Chain("head", (RMSNorm("norm", sizes.width, sizes.norm_epsilon), output_layer(sizes)))
        blocks = (_block(f"blocks.{i}", sizes) for i in range(sizes.num_layers))
        return ModelSpec(
            "llama", task, data, (embed, *blocks, head), input_kind="ids", summary=sizes.summary("llama"), divides_positions=True
        )


def llama_sizes(config: ModelConfig, data: DataShape) -> TransformerSizes:
    """Decide the sizes. Local.

    Raises:
        ConfigError: they do not fit.
    """
    sizes = transformer_sizes(
        config, data, data.num_classes, intermediate_size=gated_feed_forward_size, tied=False, norm_epsilon=1e-6, grouped=True
    )
    if sizes.head_dim % 2:
        raise ConfigError(
            f"model.width: rotary positions turn pairs of features; expected an even number of features for each of "
            f"model.num_heads = {sizes.num_heads}, got {sizes.width} / {sizes.num_heads} = {sizes.head_dim}"
        )
    return sizes


def _block(name: str, sizes: TransformerSizes) -> Layer:
    attention = Attention(
        f"{name}.attention",
        sizes.width,
        sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        causal=True,
        bias=False,
        out_bias=False,
        rotary=Rotary(sizes.rope_theta, sizes.rope_scaling),
        dropout=sizes.dropout,
        initial=INITIAL,
        out_initial=INITIAL,
    )
    feed_forward = SwiGLU(f"{name}.feed_forward", sizes.width, sizes.intermediate_size, initial=INITIAL, initial_down=INITIAL)
    first, second = (RMSNorm(f"{name}.norm{i}", sizes.width, sizes.norm_epsilon) for i in (1, 2))
    return pre_norm_block(name, sizes, (first, second), attention, feed_forward)
