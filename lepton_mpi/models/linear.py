"""One fully connected layer: linear, logistic and softmax regression."""

from __future__ import annotations

import math
from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, Family, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.divide import Divide
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.initial import Constant
from lepton_mpi.nn.linear import Linear


@final
class LinearModel(Family):
    """y = x W^T + b on the flattened sample, parameters `linear.weight` and `linear.bias`, both 0 at the start.

    With the task "classification" it is softmax regression, with "binary" logistic regression, with "regression" linear
    regression: convex, hence no random start. Shards divide the inputs, so that a model of one output divides too.
    It has no keys of its own in [model].
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "binary")

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        num_inputs, num_outputs = math.prod(data.input_shape), data.num_outputs
        linear = Linear("linear", num_inputs, num_outputs, split="row", initial=Constant(0.0))
        layer = Chain("linear", (Flatten("flatten"), Divide("divide", num_inputs), linear))
        return ModelSpec("linear", task, data, (layer,), summary=f"linear {num_inputs}-{num_outputs}")
