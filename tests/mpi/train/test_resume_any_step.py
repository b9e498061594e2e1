"""A run that is continued from any of its steps is the uninterrupted one; on any other grid it is to rounding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import configure, do_steps, facts, made_splits, on_grid, running

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.saver import BackgroundSaver
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.parallel.extra_state import RESIDUAL, ExtraState, StateExtent
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.loop import Outcome, Watcher, train
from lepton_mpi.train.network import Network
from lepton_mpi.train.resume import attributes_to_save, load, save, slices_to_save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

pytestmark = pytest.mark.mpi
NUM_STEPS = 30
# All that can be switched on.
EVERYTHING = configure(
    optimizer={"name": "adamw", "lr": 0.01, "warmup_steps": 3, "decay_steps": 25, "clip_norm": 1.0},
    train={"precision": "bf16", "ema_decay": 0.8, "micro_batches": 2, "label_smoothing": 0.1, "steps": NUM_STEPS},
    data={"augment": ("mixup:0.3",)},
)
# Whether grids agree to the bit, or to rounding.
MODES = [
    pytest.param(configure(optimizer={"lr": 0.01}, train={"steps": 8}), False, id="fast"),
    pytest.param(configure(optimizer={"lr": 0.01}, train={"steps": 4, "reproducible": True}), True, id="reproducible"),
]


def fingerprint(run: Run) -> str:
    memory = run.network.memory
    arrays = {"values": memory.values} | memory.slots
    return repr([(name, hashlib.sha256(array.tobytes()).hexdigest()) for name, array in sorted(arrays.items())])


def shape_for(comm: MPI.Intracomm) -> GridShape:
    return GridShape(comm.size // 2, 2, 1) if comm.size % 2 == 0 else GridShape(comm.size, 1, 1)


@pytest.mark.timeout_s(240)
def test_from_every_step_the_rest_has_the_same_bits(comm: MPI.Intracomm, folder: Path) -> None:
    """Checkpoints of all steps are written beside training; every one leads to the same end, in every bit and number."""
    config = on_grid(EVERYTHING, shape_for(comm))
    saver = BackgroundSaver(comm)
    with running(comm, config, made_splits()) as run:
        run.network.memory.background_readers.append(saver.settle)
        state, found, ahead = TrainState(), [], []
        for _ in range(NUM_STEPS):
            attributes = attributes_to_save(run.network, state)
            saver.begin(folder, state.step, slices_to_save(run.network, run.normalisation), attributes)
            before = fingerprint(run)
            state, metrics = do_steps(run, state, 1)
            found.append(facts(metrics))
            ahead.append(before)
            saver.drain()
        last = fingerprint(run)
        for path in reversed(list_checkpoints(folder)):
            state, _ = load(run.network, path)
            assert fingerprint(run) == ahead[state.step]
            _, metrics = do_steps(run, state, 1)
            assert facts(metrics) == found[state.step]
            # The step ends where the next one begins, so all the rest follows.
            assert fingerprint(run) == (ahead[state.step + 1] if state.step + 1 < NUM_STEPS else last)
        state, _ = load(run.network, folder / "step-000000000")
        _, metrics = do_steps(run, state, NUM_STEPS)
        assert [facts([m]) for m in metrics] == found
        assert fingerprint(run) == last
    saver.close()


@pytest.mark.parametrize(("writes", "reads"), [("data", "data"), ("data", "node"), ("node", "data")])
def test_optimizer_state_divided_over_nodes(comm: MPI.Intracomm, folder: Path, writes: str, reads: str) -> None:
    """Pieces of flat buffers, which begin and end anywhere, make up the same checkpoint as whole rows do."""
    ends = []
    for shard in ("node", writes):
        config = on_grid(replace(EVERYTHING, optimizer=replace(EVERYTHING.optimizer, shard=shard)), shape_for(comm), 1)
        with running(comm, config, made_splits()) as run:
            state, _ = do_steps(run, TrainState(), 3)
            path = save(run.network, run.normalisation, state, folder / shard, "direct")
            do_steps(run, state, 2)
            ends.append(run.network.weights.sha256())
    config = on_grid(replace(EVERYTHING, optimizer=replace(EVERYTHING.optimizer, shard=reads)), shape_for(comm), 1)
    with running(comm, config, made_splits()) as run:
        state, _ = load(run.network, path)
        again = save(run.network, run.normalisation, state, folder / "again", "direct")
        do_steps(run, state, 2)
        assert {*ends, run.network.weights.sha256()} == {ends[0]}
    with CheckpointReader(path) as one, CheckpointReader(again) as other, CheckpointReader(folder / "node" / path.name) as third:
        for name, info in one.tensors.items():
            values = [reader.read(name, (0,) * len(info.shape), info.shape).tobytes() for reader in (one, other, third)]
            assert len(set(values)) == 1, name


class Log(Watcher):
    """Notes all that a run tells, times left out."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step_done(self, state: TrainState, metrics: object, samples_per_second: float) -> None:
        self.notes.append(repr((state, facts([metrics]))))  # type: ignore[list-item]

    def evaluation_done(self, found: object, state: TrainState) -> None:
        self.notes.append(repr((found, state)))

    def epoch_done(self, metrics: object, state: TrainState) -> None:
        self.notes.append(repr((replace(metrics, samples_per_second=0.0), state)))  # type: ignore[type-var]


def whole_run(comm: MPI.Intracomm, config: Config, root: Path, first: Path | None) -> tuple[list[str], Outcome, str]:
    log = Log()
    with running(comm, config, CASES["gpt"][1] if config.model.family == "gpt" else made_splits()) as run:
        state = TrainState() if first is None else load(run.network, first, extras=run.extras)[0]
        outcome = train(run, state, root, lambda: False, log)
        return log.notes, replace(outcome, samples_per_second=0.0, data_wait_share=0.0, wall_s=0.0), fingerprint(run)


@pytest.mark.parametrize("case", ["mlp", "gpt"])
def test_loop_metrics_and_early_stopping_go_on_as_if_nothing_had_been(comm: MPI.Intracomm, folder: Path, case: str) -> None:
    """Means of an epoch, evaluations, best value, patience and the step at which it runs out: all as without a break."""
    config = EVERYTHING
    if case == "gpt":  # dropout
        config = replace(CASES["gpt"][0], train=replace(EVERYTHING.train, label_smoothing=0.0), optimizer=EVERYTHING.optimizer)
    watched = {"patience": 3, "evaluate_every_steps": 3, "evaluate_every_epochs": 2, "steps": 26}
    config = replace(
        config,
        train=replace(config.train, **watched),
        checkpoint=replace(config.checkpoint, every_steps=5, keep_last=0),
    )
    config = on_grid(config, shape_for(comm))
    notes, outcome, weights = whole_run(comm, config, folder / "whole", None)
    for path in list_checkpoints(folder / "whole"):
        step = int(path.name.removeprefix("step-"))
        if step == outcome.state.step:
            continue
        rest, ended, found = whole_run(comm, config, folder / f"from {step}", path)
        assert rest == notes[len(notes) - len(rest) :]
        assert repr(ended) == repr(outcome)
        assert found == weights


def grids(num_ranks: int, most: int = 8) -> list[tuple[GridShape, int]]:
    """Return grids of so many ranks, with the ranks that make up a node: at most eight."""
    sizes = range(1, num_ranks + 1)
    shapes = [GridShape(d, st, sh) for d in sizes for st in sizes for sh in sizes if d * st * sh == num_ranks]
    return [(shape, nodes) for shape in shapes for nodes in (0, 1) if not nodes or shape.data > 1][:most]


@pytest.mark.timeout_s(240)
@pytest.mark.parametrize(("config", "to_the_bit"), MODES)
def test_every_ordered_pair_of_grids(comm: MPI.Intracomm, folder: Path, config: Config, to_the_bit: bool) -> None:
    """Half of a run on one grid, half on another: with 4 ranks eight grids and nodes, so 64 pairs."""
    half, shapes, ends = config.train.steps // 2, grids(comm.size), []
    for number, (shape, nodes) in enumerate(shapes):
        with running(comm, on_grid(config, shape, nodes), made_splits()) as run:
            state, _ = do_steps(run, TrainState(), half)
            save(run.network, run.normalisation, state, folder / str(number), "direct")
            do_steps(run, state, half)
            ends.append((run.network.weights.sha256(), gather(run)))
    for reader, (shape, nodes) in enumerate(shapes):
        with running(comm, on_grid(config, shape, nodes), made_splits()) as run:
            for writer in range(len(shapes)):
                state, _ = load(run.network, folder / str(writer) / f"step-{half:09d}")
                do_steps(run, state, half)
                if to_the_bit or reader == writer:
                    assert run.network.weights.sha256() == ends[writer][0], (shapes[writer], shapes[reader])
                else:
                    assert_close(gather(run), ends[writer][1])


def gather(run: Run) -> list[NDArray[np.float32] | None]:
    """Return copies of all weights on rank 0, nothing on the others."""
    wholes = [run.network.weights.gather(name) for name in run.network.weights.names]
    return [None if whole is None else whole.copy() for whole in wholes]


def assert_close(found: Sequence[NDArray[np.float32] | None], expected: Sequence[NDArray[np.float32] | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:  # rank 0 has them
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)


class FakeResidual(ExtraState):
    """Error feedback as an exchange would have it: a residual of each worker and one of the owners."""

    group = RESIDUAL

    def __init__(self, network: Network) -> None:
        self._network = network
        self.shape = {spec.name: spec.shape for spec in network.model.parameters}
        world = network.grid.world
        self.mine = {}
        for name, shape in self.shape.items():
            start, stop = split_range(shape[0], world.Get_size(), world.Get_rank())
            self.mine[name] = (start, np.zeros((stop - start, *shape[1:]), np.float32))
        self.was_found: bool | None = None

    def fill(self, value: float) -> None:
        for start, array in self.mine.values():
            array[...] = value + np.arange(start, start + len(array)).reshape(-1, *[1] * (array.ndim - 1))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.shape

    def extents_to_save(self) -> list[StateExtent]:
        return [StateExtent(name, (start, *[0] * (a.ndim - 1)), a) for name, (start, a) in self.mine.items()]

    def extents_to_load(self) -> list[StateExtent]:
        return self.extents_to_save()

    def loaded(self, found: bool) -> None:
        self.was_found = found


def test_residuals_of_error_feedback_come_back(comm: MPI.Intracomm, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = on_grid(configure(), shape_for(comm))
    with running(comm, config, made_splits()) as run:
        extra = FakeResidual(run.network)
        extra.fill(3.0)
        state, _ = do_steps(run, TrainState(), 1)
        path = save(run.network, run.normalisation, state, folder, "direct", [extra])
        again = FakeResidual(run.network)
        load(run.network, path, extras=[again])
        assert again.was_found
        for name, (_, array) in again.mine.items():
            assert np.array_equal(array, extra.mine[name][1])
        load(run.network, path)  # one who has no use for them
        extra.shape = {name: (*shape, 1) for name, shape in extra.shape.items()}
        with pytest.raises(Exception, match=rf"tensor /{RESIDUAL}/"):
            load(run.network, path, extras=[extra])
        without = save(run.network, run.normalisation, state, folder / "without", "direct")
        load(run.network, without, extras=[again])
        assert again.was_found is False
        assert ("begins anew" in caplog.text) == (comm.rank == 0)
