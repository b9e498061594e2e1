"""BERT: an encoder that classifies texts or fills masked tokens in.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; its weights fit transformers'
BertForSequenceClassification and BertForMaskedLM.
"""

from __future__ import annotations

from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, Family, InputKind, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.models.transformer import CONTEXT, INITIAL, TransformerSizes, dropout, output_layer, transformer_sizes
from lepton_mpi.nn.activation import Gelu
from lepton_mpi.nn.attention import Attention
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.embedding import Embedding, LearnedPositions
from lepton_mpi.nn.feed_forward import FeedForward
from lepton_mpi.nn.first_token import FirstToken
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.layer_norm import LayerNorm
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.residual import Residual
from lepton_mpi.nn.tanh import Tanh
from lepton_mpi.nn.token_types import TokenTypes
from lepton_mpi.nn.whole_positions import WholePositions

# Texts here have one part, which is type 0; the second row is kept so that published weights fit.
NUM_TOKEN_TYPES = 2


@final
class Bert(Family):
    """Learned positions, norms after attention and feed-forward, exact GELU; padding gets no attention.

    Usual choices: width 384, num_layers 6, num_heads 6, context 256 (or the samples' length), intermediate_size 4 width,
    vocab_size of the data, norm_epsilon 1e-12, pad_token none. Classification reads the first token of a sample; masked
    language modelling uses the token embedding as its output layer, unless `tied = "no"`. `dropout` applies to embeddings,
    attention weights, what blocks add, and before the classifier.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "masked_language_model")
    input_kind: ClassVar[InputKind] = "ids"
    context: ClassVar[int] = CONTEXT

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        sizes = bert_sizes(config, task, data)
        embed = Chain(
            "embed",
            (
                Embedding("embed", sizes.vocab_size, sizes.width, initial=INITIAL, split=True),
                LearnedPositions("embed_positions", sizes.context, sizes.width, initial=INITIAL),
                TokenTypes("embed_types", NUM_TOKEN_TYPES, sizes.width, initial=INITIAL),
                LayerNorm("embed_norm", sizes.width, sizes.norm_epsilon),
                *dropout("embed_dropout", sizes.dropout),
            ),
        )
        blocks = (_block(f"blocks.{i}", sizes) for i in range(sizes.num_layers))
        head = _classifier(sizes, data.num_classes) if task.name == "classification" else _masked_language_model(sizes)
        return ModelSpec(
            "bert",
            task,
            data,
            (embed, *blocks, WholePositions("head", head)),
            input_kind="ids",
            summary=sizes.summary("bert"),
            pad_id=config.pad_token if config.pad_token >= 0 else None,
            divides_positions=True,
        )


def bert_sizes(config: ModelConfig, task: Task, data: DataShape) -> TransformerSizes:
    """Decide the sizes. Local.

    Raises:
        ConfigError: they do not fit.
    """
    num_tokens = max(data.id_counts, default=data.num_classes if task.name == "masked_language_model" else 0)
    sizes = transformer_sizes(config, data, num_tokens, tied=True, norm_epsilon=1e-12)
    if config.pad_token >= sizes.vocab_size:
        raise ConfigError(f"model.pad_token: expected one of the {sizes.vocab_size} tokens or -1, got {config.pad_token}")
    return sizes


def _block(name: str, sizes: TransformerSizes) -> Layer:
    attention = Attention(
        f"{name}.attention",
        sizes.width,
        sizes.num_heads,
        causal=False,
        bias=True,
        out_bias=True,
        dropout=sizes.dropout,
        initial=INITIAL,
        out_initial=INITIAL,
    )
    feed_forward = FeedForward(
        f"{name}.feed_forward",
        sizes.width,
        sizes.intermediate_size,
        "gelu",
        initial_first=INITIAL,
        initial_second=INITIAL,
    )
    first = Chain(f"{name}.chain1", (attention, *dropout(f"{name}.dropout1", sizes.dropout)))
    second = Chain(f"{name}.chain2", (feed_forward, *dropout(f"{name}.dropout2", sizes.dropout)))
    return Chain(
        name,
        (
            Residual(f"{name}.add1", first),
            LayerNorm(f"{name}.norm1", sizes.width, sizes.norm_epsilon),
            Residual(f"{name}.add2", second),
            LayerNorm(f"{name}.norm2", sizes.width, sizes.norm_epsilon),
        ),
    )


def _classifier(sizes: TransformerSizes, num_classes: int) -> Layer:
    width = sizes.width
    return Chain(
        "head",
        (
            FirstToken("first_token"),
            Linear("pooler", width, width, split="column", gather=True, initial=INITIAL),
            Tanh("pooler_tanh"),
            *dropout("head_dropout", sizes.dropout),
            Linear("classifier", width, num_classes, initial=INITIAL),  # few outputs: whole on every shard
        ),
    )


def _masked_language_model(sizes: TransformerSizes) -> Layer:
    width = sizes.width
    return Chain(
        "head",
        (
            Linear("transform", width, width, split="column", gather=True, initial=INITIAL),
            Gelu("transform_gelu", approximate=False),
            LayerNorm("transform_norm", width, sizes.norm_epsilon),
            output_layer(sizes, bias=True),
        ),
    )
