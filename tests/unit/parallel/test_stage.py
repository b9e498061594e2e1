"""What a stage keeps, what it computes twice, and what it tells of its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import initial_values
from lepton_mpi.nn.place import Alone
from lepton_mpi.parallel.pipelining import Pipelining
from lepton_mpi.parallel.placement import StagePlan, divide_model, plan_stage
from lepton_mpi.parallel.stage import CompleteFrom, Stage, build_stages

TRAINING = Context(training=True, step=3, first_row=5, num_global=9)
MODEL = ModelSpec(
    "test",
    TASKS["regression"],
    DataShape((6,), 0, (4,)),
    (Linear("a", 6, 5), BatchNorm2d("norm", 5), Dropout("drop", 0.4), Linear("b", 5, 7), Linear("c", 7, 4)),
)


class Silent:
    """Hears nothing."""

    def layer_done(self, layer: int, micro_batch: int) -> None:
        pass


class Counting(Module):
    """The identity, which counts its forward passes."""

    def __init__(self) -> None:
        self.num_forward = 0

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        self.num_forward += 1
        return x + 1, "kept"

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        assert saved == "kept"
        return dy if want_dx else None, None


def gradients(recompute: bool, halves: bool) -> tuple[bytes, bytes]:
    """Return output and gradients of two micro-batches."""
    plan = plan_stage(MODEL, 1, 1, 0, 0)
    values, grads = np.zeros(plan.layout.num_values, np.float32), np.zeros(plan.layout.num_values, np.float32)
    for i, block in enumerate(plan.layout.blocks):
        plan.layout.view(i, values)[...] = initial_values(block, 1)
    (stage,) = build_stages(plan, plan.layout.parameters(values, grads), Alone(seed=7), True, recompute)
    random, outputs = np.random.default_rng(0), []
    for m in range(2):
        y, saved = stage.forward(random.standard_normal((9, 6), np.float32), TRAINING)
        outputs.append(y)
        if halves:
            _, pending = stage.backward_input(y, saved)
            stage.backward_weight(pending, Silent(), m)
        else:
            stage.backward(y, saved, Silent(), m)
    return np.concatenate(outputs).tobytes(), grads.tobytes()


@pytest.mark.parametrize("halves", [True, False])
def test_recomputation_changes_no_bit_and_moves_statistics_once(halves: bool) -> None:
    assert gradients(True, halves) == gradients(False, halves) == gradients(False, True)


def test_only_what_enters_a_layer_is_kept() -> None:
    layers = [Counting() for _ in range(3)]
    stage = Stage(layers, skip_dx=False, recompute=True)
    x = np.zeros((2, 2))
    _, saved = stage.forward(x, TRAINING)
    assert [kept[1] for kept in saved] == [TRAINING] * 3
    assert [float(kept[0].max()) for kept in saved] == [0, 1, 2]
    stage.backward_input(x, saved)
    assert [layer.num_forward for layer in layers] == [2] * 3
    stage.forward(x, Context())
    assert [layer.num_forward for layer in layers] == [3] * 3


@pytest.mark.parametrize("recompute", [True, False])
def test_nothing_is_kept_where_nothing_is_trained(recompute: bool) -> None:
    assert Stage([Counting()], skip_dx=True, recompute=recompute).forward(np.zeros(2), Context())[1] == []


def test_complete_from_waits_for_all_micro_batches_and_all_layers_behind() -> None:
    told: list[int] = []
    observer = CompleteFrom([0, 16, 48], 2, told.append)
    events = [(2, 0), (1, 0), (1, 1), (0, 0)]
    for layer, m in events:
        observer.layer_done(layer, m)
    assert told == []  # layer 1 is complete, but not what lies behind it
    observer.layer_done(2, 1)
    assert told == [48, 16]
    observer.layer_done(0, 1)
    assert told == [48, 16, 0]


def plans(stages: int, virtual_stages: int) -> list[StagePlan]:
    division = divide_model(MODEL, stages, virtual_stages, costs=[1.0] * len(MODEL.layers))
    return [plan_stage(MODEL, stages, 1, stage, 0, division=division) for stage in range(stages)]


def test_a_rank_of_several_runs_numbers_its_layers_through() -> None:
    first, last = plans(2, 2)
    assert [[layer.name for layer in virtual.layers] for virtual in first.virtual_stages] == [["a"], ["drop"]]
    assert [[layer.name for layer in virtual.layers] for virtual in last.virtual_stages] == [["norm"], ["b", "c"]]
    assert [virtual.in_shapes for virtual in last.virtual_stages] == [((5,),), ((5,),)]
    told: list[tuple[int, int]] = []

    class Observer:
        def layer_done(self, layer: int, micro_batch: int) -> None:
            told.append((layer, micro_batch))

    layout = last.layout
    arrays = [np.zeros(layout.num_values, np.float32) for _ in range(2)]
    norm, rest = build_stages(last, layout.parameters(*arrays), Alone(), False)
    for stage, width in ((rest, 4), (norm, 5)):
        x = np.ones((3, 5), np.float32)
        _, saved = stage.forward(x, TRAINING)
        _, pending = stage.backward_input(np.ones((3, width), np.float32), saved)
        stage.backward_weight(pending, Observer(), 1)
    assert told == [(2, 1), (1, 1), (0, 1)]
    assert last.layer_starts[0] < last.layer_starts[1] < last.layer_starts[2]


def test_which_stages_recompute() -> None:
    assert [Pipelining().recomputes(stage) for stage in range(2)] == [False, False]
    assert [Pipelining(recompute=True).recomputes(stage) for stage in range(2)] == [True, True]
    assert [Pipelining(recompute=True, recompute_stages=(1,)).recomputes(stage) for stage in range(3)] == [False, True, False]
