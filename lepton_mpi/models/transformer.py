"""What the transformer families have in common: how their sizes follow from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.initial import Normal
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.residual import Residual
from lepton_mpi.ops.rotary import Llama3Scaling

# Deviation of initial weights (Radford et al. 2018, section 4.1; the published code of BERT has it too).
INITIAL_DEVIATION = 0.02
INITIAL = Normal(INITIAL_DEVIATION)

EMBEDDING_WEIGHT = "embed.weight"

# Tokens a sample, unless the configuration says otherwise.
CONTEXT = 256

_WIDTH = 384
_LAYERS = 6
_HEADS = 6
_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a transformer, all decided.

    Attributes:
        width: features between blocks.
        num_layers: blocks.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values, shared by groups of the others.
        intermediate_size: hidden width of the feed-forward layers.
        context: longest sequence.
        vocab_size: tokens.
        tied: whether the output layer uses the weights of the token embedding.
        norm_epsilon: added to variances under the root.
        rope_theta: base of rotary positions.
        rope_scaling: how their long wavelengths are stretched; None: not at all.
        dropout: share of activations that dropout clears.
    """

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    context: int
    vocab_size: int
    tied: bool
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    dropout: float

    @property
    def head_dim(self) -> int:
        """Features of an attention head."""
        return self.width // self.num_heads

    def summary(self, family: str) -> str:
        """Return one line for the banner."""
        heads = f"{self.num_heads} heads" + (f" on {self.num_kv_heads}" if self.num_kv_heads < self.num_heads else "")
        return f"{family} {self.num_layers} layers, width {self.width}, {heads}, context {self.context}, {self.vocab_size} tokens"


def feed_forward_size(width: int) -> int:
    """Return the usual hidden width of a feed-forward layer: four times the model's (Vaswani et al. 2017, section 3.3). Local."""
    return 4 * width


def gated_feed_forward_size(width: int) -> int:
    """Return the usual hidden width of a gated feed-forward layer: 8/3 of the model's, so that its three matrices have as many
    weights as two of four times the width (Shazeer 2020), rounded up to a multiple of 64. Local.
    """
    return -(-8 * width // (3 * 64)) * 64


def transformer_sizes(
    config: ModelConfig,
    data: DataShape,
    num_tokens: int,
    *,
    intermediate_size: Callable[[int], int] = feed_forward_size,
    tied: bool,
    norm_epsilon: float,
    grouped: bool = False,
) -> TransformerSizes:
    """Decide the sizes of a transformer for data of ids (T,). Local.

    Args:
        config: section [model]; 0 stands for the usual choice: width 384, 6 layers, 6 heads, context 256 or the samples'
            length where that is longer, as many tokens as the data have.
        data: what the data look like.
        num_tokens: tokens that the data have; 0 where that is not known.
        intermediate_size: the usual hidden width of the feed-forward layers for a width.
        tied: whether embedding and output layer usually share their weights.
        norm_epsilon: the usual one.
        grouped: whether the family lets heads share keys and values.

    Raises:
        ConfigError: the sizes do not fit each other or the data; names the key.
    """
    if len(data.input_shape) != 1:
        raise ConfigError(
            f"model.family: a transformer takes samples of token ids, shape (T,), got {data.input_shape}; choose another family"
        )
    heads = config.num_heads or _HEADS
    width = config.width or _WIDTH
    sizes = TransformerSizes(
        width=width,
        num_layers=config.num_layers or _LAYERS,
        num_heads=heads,
        num_kv_heads=config.num_kv_heads or heads,
        intermediate_size=config.intermediate_size or intermediate_size(width),
        context=config.context or max(CONTEXT, data.input_shape[0]),
        vocab_size=config.vocab_size or num_tokens,
        tied=tied if config.tied == "auto" else config.tied == "yes",
        norm_epsilon=config.norm_epsilon or norm_epsilon,
        rope_theta=config.rope_theta or _ROPE_THETA,
        rope_scaling=_read_scaling(config.rope_scaling),
        dropout=config.dropout,
    )
    _check(sizes, data.input_shape[0], num_tokens, grouped)
    return sizes


def _read_scaling(values: Sequence[float]) -> Llama3Scaling | None:
    if not values:
        return None
    if len(values) != 4 or min(values) <= 0 or values[3] != int(values[3]) or values[1] >= values[2]:
        raise ConfigError(
            "model.rope_scaling: expected four numbers above 0: factor, low_freq_factor, a larger high_freq_factor, and the "
            f"original context in tokens, got {list(values)}"
        )
    return Llama3Scaling(values[0], values[1], values[2], int(values[3]))


def _check(sizes: TransformerSizes, length: int, num_tokens: int, grouped: bool) -> None:
    heads, kv_heads = sizes.num_heads, sizes.num_kv_heads
    if sizes.width % heads:
        raise ConfigError(f"model.width: expected a multiple of model.num_heads = {heads}, got {sizes.width}")
    if heads % kv_heads:
        raise ConfigError(f"model.num_kv_heads: expected a divisor of model.num_heads = {heads}, got {kv_heads}")
    if not grouped and kv_heads != heads:
        raise ConfigError(f"model.num_kv_heads: only llama shares keys and values between heads; expected 0, got {kv_heads}")
    if length > sizes.context:
        raise ConfigError(f"model.context: expected at least {length}, the length of the data's samples, got {sizes.context}")
    if sizes.vocab_size < max(num_tokens, 1):
        raise ConfigError(
            f"model.vocab_size: expected at least {max(num_tokens, 1)}, "
            f"{'the number of tokens in the data' if num_tokens else 'since the data do not tell it'}, got {sizes.vocab_size}"
        )


def dropout(name: str, rate: float) -> Sequence[Layer]:
    """Return a dropout layer to put into a chain; none for a rate of 0. Local."""
    return (Dropout(name, rate),) if rate else ()


def pre_norm_block(name: str, sizes: TransformerSizes, norms: tuple[Layer, Layer], attention: Layer, feed_forward: Layer) -> Layer:
    """Return a block that adds attention to its input, and then a feed-forward layer, a norm before each (GPT-2, Llama). Local."""
    first = (norms[0], attention, *dropout(f"{name}.dropout1", sizes.dropout))
    second = (norms[1], feed_forward, *dropout(f"{name}.dropout2", sizes.dropout))
    return Chain(
        name, (Residual(f"{name}.add1", Chain(f"{name}.chain1", first)), Residual(f"{name}.add2", Chain(f"{name}.chain2", second)))
    )


def output_layer(sizes: TransformerSizes, bias: bool = False) -> Linear:
    """Return the layer that makes one output a token, divided by vocabulary over the shards. Local."""
    return Linear(
        "head",
        sizes.width,
        sizes.vocab_size,
        split="column",
        gather=True,
        feeds_loss=True,
        bias=bias,
        initial=INITIAL,
        tied=EMBEDDING_WEIGHT if sizes.tied else "",
    )
