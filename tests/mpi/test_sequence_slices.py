"""With grid.sequence shards divide the positions of what lies between divided layers: moves, results, memory, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.comm.reduction import sum_in_tree_order
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.layer_norm import LayerNorm
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.place import Alone
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.sequence_moves import GatherPositions, ScatterSum
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import ShardCut
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.state import TrainState

NUM_STEPS = 4
GRIDS = [GridShape(*map(int, name.split("x"))) for name in ["1x1x1", "1x1x2", "1x1x3", "1x1x4", "2x1x2", "1x2x2"]]
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"num_heads": 6, "width": 24, "num_layers": 2, "dropout": 0.1},
    "bert": {"num_heads": 6, "width": 24, "num_layers": 2, "dropout": 0.1},
    "bert-masked": {"num_heads": 6, "width": 24, "num_layers": 2, "dropout": 0.1},
    "llama": {"num_heads": 8, "num_kv_heads": 4, "width": 32, "num_layers": 2, "dropout": 0.1},
}


def config_of(case: str, shape: GridShape, reproducible: bool, sequence: bool) -> Config:
    config = on_grid(CASES[case][0], shape)
    config = replace(config, model=replace(config.model, **SIZES[case]))
    config = replace(config, train=replace(config.train, reproducible=reproducible, micro_batches=0))
    return replace(config, grid=replace(config.grid, sequence=sequence))


def do_run(comm: MPI.Intracomm, case: str, config: Config) -> tuple[str, list[float], str, str]:
    with running(comm, config, CASES[case][1]) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        values = repr(evaluate(run.network, run.test_loader).values)
        numbers = [number for step in steps for number in (step.loss, step.grad_norm)]
        return facts(steps), numbers, run.network.weights.sha256(), values


@cache
def alone(case: str, reproducible: bool, sequence: bool) -> tuple[str, list[float], str, str]:
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, case, config_of(case, GridShape(1, 1, 1), reproducible, sequence))
    comm.Free()
    return found


@pytest.mark.mpi
@pytest.mark.timeout_s(300)
@pytest.mark.parametrize("case", ["gpt", "llama", "bert", "bert-masked"])
@pytest.mark.parametrize("reproducible", [False, True])
def test_every_grid_finds_the_same(comm: MPI.Intracomm, case: str, reproducible: bool) -> None:
    for shape in GRIDS:
        if shape.num_ranks == comm.size:
            reference = do_on_root(comm, lambda: alone(case, reproducible, reproducible))
            found = do_run(comm, case, config_of(case, shape, reproducible, True))
            assert found[1] == pytest.approx(reference[1], rel=1e-4)
            if reproducible:
                assert found == reference  # weights and metrics, too, to the bit
                near = do_on_root(comm, lambda: alone(case, True, False))
                assert found[1] == pytest.approx(near[1], rel=1e-4)


@pytest.mark.mpi
@pytest.mark.parametrize("num_positions", [3, 8, 11])
@pytest.mark.parametrize("chunks", [0, 5])
def test_the_moves_are_adjoint_to_each_other(comm: MPI.Intracomm, num_positions: int, chunks: int) -> None:
    cut = ShardCut(comm.size, chunks)
    parts = cut.num_chunks(7)
    first, last = cut.own_chunks(comm.rank, 7)
    start, stop = cut.share(comm.rank, num_positions)
    random = np.random.default_rng([4, comm.rank])
    x = random.standard_normal((2, stop - start, 6))
    y = list(random.standard_normal((last - first, 2, num_positions, 6)))
    gather, scatter = (kind(comm, cut, parts).of(num_positions) for kind in (GatherPositions, ScatterSum))
    whole = gather.forward(x)
    assert whole.shape == (2, num_positions, 6)
    np.testing.assert_array_equal(whole[:, start:stop], x)
    left = comm.allreduce(sum(float((whole * part).sum()) for part in y))
    total = comm.allreduce(sum(y))
    summed = gather.adjoint([part.copy() for part in y])
    np.testing.assert_allclose(summed, total[:, start:stop], rtol=1e-12, atol=1e-14)
    assert comm.allreduce(float((x * summed).sum())) == pytest.approx(left, rel=1e-11) and abs(left) > 1e-3
    whole_sum = sum_in_tree_order(comm, [part.copy() for part in y], parts)
    np.testing.assert_array_equal(summed, whole_sum[:, start:stop])  # the bits of the sum that it replaces
    np.testing.assert_array_equal(scatter.forward([part.copy() for part in y]), summed)
    np.testing.assert_array_equal(scatter.adjoint(x), whole)


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["mlp", "resnet"])
def test_models_without_slices_of_positions_refuse(comm: MPI.Intracomm, case: str) -> None:
    config = on_grid(CASES[case][0], GridShape(comm.size, 1, 1))
    config = replace(config, grid=replace(config.grid, sequence=True))
    with pytest.raises(ConfigError, match=r"grid\.sequence.*leave it out"), running(comm, config, CASES[case][1]):
        pass


def kept_bytes(found: Any, seen: set[int]) -> int:
    """Return the bytes of the arrays that a forward pass kept, each memory counted once."""
    if isinstance(found, np.ndarray):
        owner = found
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        new = id(owner) not in seen
        seen.add(id(owner))
        return owner.nbytes if new else 0
    return sum(kept_bytes(each, seen) for each in found) if isinstance(found, (list, tuple)) else 0


@pytest.mark.mpi
@pytest.mark.parametrize("layer", [LayerNorm("norm", 24), Dropout("dropout", 0.3)], ids=["norm", "dropout"])
def test_shards_keep_their_positions_only(comm: MPI.Intracomm, layer: Layer) -> None:
    grid, num_positions = ProcessGrid(comm, GridShape(1, 1, comm.size)), 12
    place = place_on(grid, 0, "fp32", sequence=True)
    start, stop = place.share(num_positions)
    whole = np.random.default_rng(3).standard_normal((5, num_positions, 24)).astype(np.float32)
    blocks = [cut_parameter(spec, comm.size, comm.rank, 0) for spec in layer.parameters]
    weights = {b.name: Parameter(b, np.ones(b.shape, np.float32), np.zeros(b.shape, np.float32)) for b in blocks}
    context = Context(training=True, num_positions=num_positions)
    y, saved = layer.at_work(weights, place).forward(whole[:, start:stop].copy(), context)
    all_of, kept = layer.at_work(weights, Alone()).forward(whole, replace(context, num_positions=0))
    np.testing.assert_array_equal(y, all_of[:, start:stop])  # the masks, too, are those of the whole
    assert comm.allreduce(kept_bytes(saved, set())) == kept_bytes(kept, set()) > 0
    assert comm.size == 1 or kept_bytes(saved, set()) < kept_bytes(kept, set())
    grid.free()
