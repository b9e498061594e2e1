"""Models small enough to compare whole and divided."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import find_family
from lepton_mpi.models.task import choose_task


def declare(family: str, input_shape: Sequence[int], num_classes: int, task: str = "auto", **sizes: object) -> ModelSpec:
    """Return a model as a configuration would declare it."""
    found = find_family(family)
    config = ModelConfig(family=family, task=task, **sizes)  # type: ignore[arg-type]
    return found.declare(config, choose_task(task, family, found.tasks), DataShape(tuple(input_shape), num_classes))


def mlp(in_features: int, hidden_sizes: Sequence[int], num_classes: int) -> ModelSpec:
    """Return an MLP."""
    return declare("mlp", (in_features,), num_classes, hidden_sizes=tuple(hidden_sizes))
