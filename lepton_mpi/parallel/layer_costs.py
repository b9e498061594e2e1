"""How long layers take on this machine, for stages that are cut by it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import ParameterLayout, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone
from lepton_mpi.ops.product import Precision
from lepton_mpi.runtime.mpi import MPI

# Passes of each layer, of which the shortest counts: others were disturbed, and the first also pays for memory.
_REPEATS = 3


@collective("world")
def agree_on_costs(world: MPI.Intracomm, model: ModelSpec, rows: int, xp: Any, precision: Precision = "fp32") -> tuple[float, ...]:
    """Return the cost of each layer as rank 0 measures it, the same on all ranks.

    Collective over world. One rank measures while the others wait without taking its core: what counts is how the layers
    compare, and ranks that measure at the same time would disturb each other.

    Args:
        world: all ranks.
        model: the model.
        rows: samples of a micro-batch.
        xp: module of the arrays, numpy or cupy.
        precision: precision of matrix products.
    """
    costs = np.zeros(len(model.layers))
    if world.Get_rank() == 0:
        costs[...] = measure_costs(model, rows, xp, precision)
    wait(world.Ibcast(costs, 0), "the measured costs of the layers")
    return tuple(costs.tolist())


def measure_costs(model: ModelSpec, rows: int, xp: Any, precision: Precision = "fp32") -> list[float]:
    """Return the seconds of a forward and backward pass of each layer, undivided. Local.

    Layers are made one after the other on parameters of their own, so no more than one needs memory.

    Args:
        model: the model.
        rows: samples of a micro-batch; 0 counts as 1.
        xp: module of the arrays, numpy or cupy.
        precision: precision of matrix products.
    """
    rows = max(rows, 1)
    ids = _ids(model, rows) if model.input_kind == "ids" else None
    mask = None if model.pad_id is None or ids is None else xp.asarray(ids != model.pad_id)
    costs = []
    for i, layer in enumerate(model.layers):
        x = xp.asarray(ids) if i == 0 and ids is not None else _arrays(model.boundaries[i], rows, xp)
        dy = _arrays(model.boundaries[i + 1], rows, xp)
        module = _build(layer, xp, precision)
        costs.append(min(_time(module, x, dy, Context(True, key_mask=mask, num_global=rows), i > 0, xp) for _ in range(_REPEATS)))
    return costs


def _build(layer: Layer, xp: Any, precision: Precision) -> Module:
    """Return a layer alone, with fresh weights."""
    specs = {spec.name: spec for spec in layer.parameters}.values()
    blocks = {role: [cut_parameter(spec, 1, 0) for spec in specs if spec.role == role] for role in ("weight", "statistic")}
    layout = ParameterLayout(blocks["weight"], blocks["statistic"])
    values, grads = xp.zeros(layout.num_values, np.float32), xp.zeros(layout.num_values, np.float32)
    for i, block in enumerate(layout.blocks):
        layout.view(i, values)[...] = xp.asarray(initial_values(block, 0))
    return layer.build({p.block.name: p for p in layout.parameters(values, grads)}, Alone(precision=precision))


def _time(module: Module, x: Any, dy: Any, context: Context, want_dx: bool, xp: Any) -> float:
    """Return the seconds of one forward and backward pass."""
    begin = time.perf_counter()
    _, saved = module.forward(x, context)
    _, pending = module.backward_input(dy, saved, want_dx)
    module.backward_weight(pending)
    if xp is not np:
        xp.cuda.Device().synchronize()
    return time.perf_counter() - begin


def _arrays(shapes: Shapes, rows: int, xp: Any) -> Any:
    """Return values as they flow between layers: one array bare, several as a tuple."""
    random = np.random.default_rng(0)
    arrays = tuple(xp.asarray(random.standard_normal((rows, *shape), np.float32)) for shape in shapes)
    return arrays[0] if len(arrays) == 1 else arrays


def _ids(model: ModelSpec, rows: int) -> Any:
    """Return ids that occur: of each column its own, or tokens of the vocabulary."""
    shape = (rows, *model.data.input_shape)
    limits: Sequence[int] = model.data.id_counts or (model.data.num_classes,)
    columns = [limits[min(column, len(limits) - 1)] for column in range(shape[-1])]
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape) % np.maximum(columns, 1)
