"""Layers that take longer cost more, for every kind of input that a model takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.parallel.layer_costs import measure_costs
from lepton_mpi.parallel.placement import divide_model
from lepton_mpi.train.network import declare_model


@dataclass(frozen=True)
class Sleepy(Layer):
    """A layer that takes a set time and says that it costs nothing."""

    seconds: float = 0.0

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        return SleepyModule(self.seconds)


class SleepyModule(Module):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        time.sleep(self._seconds)
        return x, None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        return dy, None


def test_stages_are_cut_by_what_was_measured() -> None:
    layers = tuple(Sleepy(str(i), seconds) for i, seconds in enumerate((0.001, 0.001, 0.001, 0.05)))
    model = ModelSpec("test", TASKS["regression"], DataShape((3,), 0, (3,)), layers)
    costs = measure_costs(model, 2, np)
    assert costs[3] > 5 * max(costs[:3])
    assert min(costs) >= 0.001
    assert divide_model(model, 2, costs=costs) == ((0, 3), (3, 4))


TRANSFORMER = {"num_layers": 1, "width": 8, "num_heads": 2, "context": 6}


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ({"family": "mlp", "hidden_sizes": (9, 6)}, DataShape((7,), 3)),
        ({"family": "resnet", "depth": 20, "width": 4}, DataShape((3, 8, 8), 3)),
        ({"family": "unet", "depth": 2, "width": 4, "task": "segmentation"}, DataShape((3, 8, 8), 3, (8, 8))),
        ({"family": "gpt", **TRANSFORMER}, DataShape((6,), 11, (6,))),
        ({"family": "bert", "pad_token": 0, "vocab_size": 11, **TRANSFORMER}, DataShape((6,), 3)),
        ({"family": "recommender", "task": "binary", "embedding_size": 4}, DataShape((2,), 0, (), (5, 9))),
    ],
    ids=lambda value: value.get("family") if isinstance(value, dict) else "",
)
def test_every_family_can_be_measured(sizes: dict[str, Any], data: DataShape) -> None:
    model = declare_model(ModelConfig(**sizes), data)
    costs = measure_costs(model, 0, np)
    assert len(costs) == len(model.layers)
    assert min(costs) > 0
