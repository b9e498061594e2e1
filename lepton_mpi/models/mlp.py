"""Multi-layer perceptron: fully connected layers with ReLU between them."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_mpi.models.family import LinearSpec, ModelSpec


def mlp(in_features: int, hidden_sizes: Sequence[int], num_classes: int) -> ModelSpec:
    """Declare an MLP. Local.

    Shards divide layers in pairs, the first by columns and the second by rows, so that one sum
    over the shards serves two layers (Shoeybi et al. 2019, Megatron-LM, section 3). A last layer
    without a partner is divided by columns and its outputs are gathered.

    Args:
        in_features: values a sample.
        hidden_sizes: widths of the hidden layers; may be empty.
        num_classes: outputs.
    """
    widths = [in_features, *hidden_sizes, num_classes]
    last = len(widths) - 2
    layers = tuple(
        LinearSpec(
            name=f"layers.{i}",
            in_features=widths[i],
            out_features=widths[i + 1],
            relu=i < last,
            split="row" if i % 2 else "column",
            gather=i == last and i % 2 == 0,
        )
        for i in range(last + 1)
    )
    return ModelSpec("mlp", in_features, num_classes, layers)
