"""Multi-layer perceptron: fully connected layers with ReLU between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, Family, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.linear import Linear


@final
class Mlp(Family):
    """Fully connected layers of `hidden_sizes`, ReLU between them."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "binary")

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        widths = [math.prod(data.input_shape), *config.hidden_sizes, data.num_outputs]
        summary = "-".join(str(width) for width in widths)
        return ModelSpec("mlp", task, data, dense_layers("layers", widths, flatten=True), summary=f"mlp {summary}")


def dense_layers(prefix: str, widths: Sequence[int], flatten: bool) -> tuple[Layer, ...]:
    """Declare fully connected layers with ReLU between them, none after the last. Local.

    Shards divide layers in pairs, the first by columns and the second by rows, so that one sum
    over the shards serves two layers (Shoeybi et al. 2019, Megatron-LM, section 3). A last layer
    without a partner is divided by columns and its outputs are gathered; one with a single output is not divided.

    Args:
        prefix: of the names `<prefix>.<number>`.
        widths: features of the input, the hidden layers, and the output.
        flatten: whether samples come in any shape and are made flat first.
    """
    last = len(widths) - 2
    layers: list[Layer] = [
        Linear(
            f"{prefix}.{i}",
            in_features=widths[i],
            out_features=widths[i + 1],
            relu=i < last,
            split="row" if i % 2 else None if i == last and widths[-1] == 1 else "column",
            gather=i == last and i % 2 == 0 and widths[-1] > 1,
        )
        for i in range(last + 1)
    ]
    if flatten:
        layers[0] = Chain(f"{prefix}.0", (Flatten("flatten"), layers[0]))
    return tuple(layers)
