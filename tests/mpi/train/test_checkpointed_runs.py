"""Checkpoints of a run: the same bits after a continuation, and the same weights on any grid."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_runs import configure, do_steps, made_splits, on_grid, running

from lepton_mpi.checkpoint.layout import DATA_FILE
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

CONFIG = configure(optimizer={"name": "adamw", "lr": 0.01, "clip_norm": 1.0})


def save_run(run: Run, state: TrainState, folder: Path) -> Path:
    return save(run.network, run.normalisation, state, folder, "direct")


def train_and_save(comm: MPI.Intracomm, config: Config, folder: Path, num_steps: int) -> tuple[Path, str]:
    with running(comm, config, made_splits()) as run:
        state, _ = do_steps(run, TrainState(), num_steps)
        return save_run(run, state, folder), run.network.weights.sha256()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_a_continued_run_has_the_bits_of_one_without_a_break(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, ranks_per_node: int
) -> None:
    for shape in grid_shapes:
        if ranks_per_node and shape.data == 1:
            continue  # nodes make no difference
        config = on_grid(CONFIG, shape, ranks_per_node)
        with running(comm, config, made_splits()) as run:
            do_steps(run, TrainState(), 20)
            unbroken = run.network.weights.sha256()
        path, half = train_and_save(comm, config, folder / str(shape), 10)
        with running(comm, config, made_splits()) as run:
            state, normalisation = load(run.network, path)
            assert (state.step, state.epoch, state.position) == (10, 2, 32)  # 4 steps an epoch of 50 samples, 16 each
            assert normalisation.mean.tobytes() == run.normalisation.mean.tobytes()
            assert normalisation.std.tobytes() == run.normalisation.std.tobytes()
            assert run.network.weights.sha256() == half
            do_steps(run, state, 10)
            assert run.network.weights.sha256() == unbroken, shape


@pytest.mark.mpi
def test_a_checkpoint_loads_on_any_other_grid(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    other_seed = replace(CONFIG, train=replace(CONFIG.train, seed=77))
    for i, writer in enumerate(grid_shapes):
        path, digest = train_and_save(comm, on_grid(CONFIG, writer), folder / str(writer), 3)
        for shift in range(1, min(len(grid_shapes), 4)):
            reader = grid_shapes[(i + shift) % len(grid_shapes)]
            with running(comm, on_grid(other_seed, reader), made_splits()) as run:
                assert run.network.weights.sha256() != digest
                state, _ = load(run.network, path)
                assert run.network.weights.sha256() == digest, f"{writer} read by {reader}"
                if shift > 1:
                    continue
                again = save_run(run, state, folder / f"{writer} {reader}")
                if comm.rank == 0:
                    assert tensors_of(again) == tensors_of(path)  # optimizer state included


def tensors_of(path: Path) -> dict[str, bytes]:
    tensors: dict[str, bytes] = {}
    with h5py.File(path / DATA_FILE) as file:
        file.visititems(lambda name, item: tensors.update({name: item[()].tobytes()}) if is_tensor(name, item) else None)
    return tensors


def is_tensor(name: str, item: h5py.Group | h5py.Dataset) -> bool:
    return isinstance(item, h5py.Dataset) and name.split("/")[0] in ("param", "opt", "normalisation")


@pytest.mark.mpi
def test_the_hash_can_be_computed_from_the_file(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    path, found = train_and_save(comm, on_grid(CONFIG, grid_shapes[0]), folder, 2)
    digest = hashlib.sha256()
    with h5py.File(path / DATA_FILE) as file:
        names = sorted(file["param"])
        assert names == sorted(f"layers.{i}.{kind}" for i in range(5) for kind in ("weight", "bias"))
        for name in names:
            digest.update(file["param"][name][()].astype("<f4").tobytes())
    assert found == digest.hexdigest()


@pytest.mark.mpi
def test_gathered_parameters_are_whole(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    for shape in grid_shapes:
        with running(comm, on_grid(CONFIG, shape), made_splits()) as run:
            state, _ = do_steps(run, TrainState(), 2)
            path = save_run(run, state, folder / str(shape))
            for name in run.network.weights.names:
                whole = run.network.weights.gather(name)
                assert (whole is None) == (comm.rank > 0)
                if whole is not None:
                    with h5py.File(path / DATA_FILE) as file:
                        assert np.array_equal(whole, file["param"][name][()])


@pytest.mark.mpi
def test_a_checkpoint_of_another_model_is_refused(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    path, _ = train_and_save(comm, on_grid(CONFIG, grid_shapes[0]), folder, 1)
    for changed in (
        replace(CONFIG, model=replace(CONFIG.model, hidden_sizes=(11, 9, 7, 8))),
        replace(CONFIG, model=replace(CONFIG.model, hidden_sizes=(11, 9, 7))),
        replace(CONFIG, optimizer=replace(CONFIG.optimizer, name="sgd")),
    ):
        for shape in grid_shapes[-1:]:
            with running(comm, on_grid(changed, shape), made_splits()) as run:
                before = run.network.weights.sha256()
                with pytest.raises(CheckpointError, match=r"tensor /(param|opt)/.*: the model has .*, the checkpoint"):
                    load(run.network, path)
                assert run.network.weights.sha256() == before


@pytest.mark.mpi
def test_a_missing_checkpoint_is_an_error_of_all_ranks(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path) -> None:
    with (
        running(comm, on_grid(CONFIG, grid_shapes[0]), made_splits()) as run,
        pytest.raises(CheckpointError),
    ):
        load(run.network, folder / "none")
