"""GPT-2: a decoder that predicts the next token.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; its weights fit transformers' GPT2LMHeadModel.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, Family, InputKind, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.models.transformer import (
    CONTEXT,
    INITIAL,
    INITIAL_DEVIATION,
    TransformerSizes,
    dropout,
    output_layer,
    pre_norm_block,
    transformer_sizes,
)
from lepton_mpi.nn.attention import Attention
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.embedding import Embedding, LearnedPositions
from lepton_mpi.nn.feed_forward import FeedForward
from lepton_mpi.nn.initial import Normal
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.layer_norm import LayerNorm


@final
class Gpt(Family):
    """Learned positions, norms before attention and feed-forward, GELU by tanh.

    Usual choices: width 384, num_layers 6, num_heads 6, context 256 (or the samples' length), intermediate_size 4 width,
    vocab_size of the data, norm_epsilon 1e-5, the output layer tied to the token embedding. `dropout` applies to embeddings,
    attention weights and what blocks add.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_model",)
    input_kind: ClassVar[InputKind] = "ids"
    context: ClassVar[int] = CONTEXT

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        sizes = gpt_sizes(config, data)
        embed = Chain(
            "embed",
            (
                Embedding("embed", sizes.vocab_size, sizes.width, initial=INITIAL, split=True),
                LearnedPositions("embed_positions", sizes.context, sizes.width, initial=INITIAL),
                *dropout("embed_dropout", sizes.dropout),
            ),
        )
        head = Chain("head", (LayerNorm("norm", sizes.width, sizes.norm_epsilon), output_layer(sizes)))
        blocks = (_block(f"blocks.{i}", sizes) for i in range(sizes.num_layers))
        return ModelSpec(
            "gpt", task, data, (embed, *blocks, head), input_kind="ids", summary=sizes.summary("gpt"), divides_positions=True
        )


def gpt_sizes(config: ModelConfig, data: DataShape) -> TransformerSizes:
    """Decide the sizes. Local.

    Raises:
        ConfigError: they do not fit.
    """
    return transformer_sizes(config, data, data.num_classes, tied=True, norm_epsilon=1e-5)


def _block(name: str, sizes: TransformerSizes) -> Layer:
    # Every block adds to the same stream twice, hence the smaller start (Radford et al. 2019, section 2.3).
    last = Normal(INITIAL_DEVIATION / math.sqrt(2 * sizes.num_layers))
    attention = Attention(
        f"{name}.attention",
        sizes.width,
        sizes.num_heads,
        causal=True,
        bias=True,
        out_bias=True,
        dropout=sizes.dropout,
        initial=INITIAL,
        out_initial=last,
    )
    feed_forward = FeedForward(
        f"{name}.feed_forward",
        sizes.width,
        sizes.intermediate_size,
        "gelu_tanh",
        initial_first=INITIAL,
        initial_second=last,
    )
    first, second = (LayerNorm(f"{name}.norm{i}", sizes.width, sizes.norm_epsilon) for i in (1, 2))
    return pre_norm_block(name, sizes, (first, second), attention, feed_forward)
