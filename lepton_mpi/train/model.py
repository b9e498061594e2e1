"""Train, evaluate and predict from Python, on arrays: with or without mpirun."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.strict.calls import watched
from lepton_mpi.comm.waiting import wait
from lepton_mpi.data.normalisation import Normalisation, measure_normalisation
from lepton_mpi.errors import CheckpointError, LeptonError
from lepton_mpi.models.family import DataShape
from lepton_mpi.monitor.classification import ClassificationMetrics
from lepton_mpi.monitor.run_folder import is_run_folder
from lepton_mpi.runtime.mpi import MPI, start_mpi
from lepton_mpi.runtime.threads import threads_exceed_cores
from lepton_mpi.runtime.uncaught import end_job_on_uncaught_errors
from lepton_mpi.train.arguments import ArrayReader, agree_on_call, read_settings
from lepton_mpi.train.inference import evaluate, inference_loader, predict
from lepton_mpi.train.loop import EpochMetrics, Watcher, train
from lepton_mpi.train.model_folder import complete_model_folder
from lepton_mpi.train.resume import load, read_data_shape, save
from lepton_mpi.train.run import Engine, attach_data, build_engine
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

_log = logging.getLogger(__name__)


@final
class LeptonModel:
    """A fully connected classifier.

    The same script runs alone and under mpirun. There every rank calls the same methods with the
    same arguments and whole arrays, and gets the same results; the ranks share the work among
    themselves. All methods are collective over the world, and errors come on all ranks alike.

        with LeptonModel(input_shape=64, num_classes=10, hidden_size=256, num_layers=3) as model:
            model.fit(x, y, epochs=20, validation_data=(x_test, y_test))
            print(model.evaluate(x_test, y_test).accuracy, model.predict(x_test))
            model.save("my-model")

    With several ranks, an uncaught exception on one of them ends the job instead of leaving the
    others waiting: the first model sets `sys.excepthook`. Import LeptonModel before NumPy, or set
    OMP_NUM_THREADS, so that the ranks of a node share its cores.

    Attributes:
        rank: number of this process in the job, from 0; 0 alone.
        num_ranks: processes of the job.
    """

    @collective("the world")
    def __init__(
        self,
        input_shape: int | Sequence[int],
        num_classes: int,
        hidden_size: int,
        num_layers: int,
        *,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 128,
        seed: int = 0,
        normalise: str = "global",
        data: int = 0,
        stages: int = 0,
        shards: int = 0,
        device: str = "cpu",
        reduce: str = "exact",
    ) -> None:
        """Start MPI if nobody has, and make a model with fresh weights.

        Collective over the world.

        Args:
            input_shape: shape of one sample; an integer n means (n,).
            num_classes: number of classes, at least 2.
            hidden_size: width of the hidden layers.
            num_layers: fully connected layers in all: num_layers - 1 hidden ones, each followed by ReLU, and the
                output layer. 1 is softmax regression.
            optimizer: "adamw" or "sgd" (with momentum 0.9).
            lr: learning rate, constant.
            weight_decay: see `OptimizerConfig.weight_decay`.
            batch_size: samples a step over all ranks.
            seed: seed of weights and of the order of samples.
            normalise: "global", "feature" or "none": how inputs are normalised, as measured at the first `fit`.
            data, stages, shards: sizes of the process grid; 0 leaves the choice.
            device: "cpu" or "gpu".
            reduce: what gradients travel as between nodes: any `ReduceConfig.mode`.

        Raises:
            ConfigError: an argument is impossible.
            GridError: the grid fits neither the ranks nor the model, or the launcher belongs to another MPI.
            RankMismatchError: ranks were given different arguments.
        """
        settings: dict[str, Any] = {
            "input_shape": input_shape,
            "num_classes": num_classes,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "seed": seed,
            "normalise": normalise,
            "data": data,
            "stages": stages,
            "shards": shards,
            "device": device,
            "reduce": reduce,
        }
        plain = start_mpi().Dup()
        self._comm = watched(plain, "the world")
        self.rank: int = self._comm.Get_rank()
        self.num_ranks: int = self._comm.Get_size()
        end_job_on_uncaught_errors(plain)
        if self.rank == 0 and threads_exceed_cores():
            warnings.warn(
                "the ranks start more threads for linear algebra than there are cores, which is slow: import LeptonModel before "
                "NumPy, or set OMP_NUM_THREADS",
                RuntimeWarning,
                stacklevel=2,
            )
        self._config, self._input_shape = agree_on_call(self._comm, "LeptonModel", lambda: read_settings(settings))
        self._num_classes = self._config.data.num_classes
        self._reader = ArrayReader(self._input_shape, self._num_classes, want_digests=self.num_ranks > 1)
        self._data_shape = DataShape(self._input_shape, self._num_classes)
        self._engine: Engine | None = build_engine(self._comm, self._config, self._data_shape)
        self._normalisation: Normalisation | None = None
        self._state = TrainState()
        self._broken = False
        if self.num_ranks > 1:
            # A rank that ends while others are in a method, as with `if model.rank == 0: model.evaluate(...)`,
            # would leave them waiting; so it meets them here, and all learn what is wrong.
            atexit.register(self.close)

    @property
    def epoch(self) -> int:
        """Epochs trained so far, over all calls of `fit` and what was loaded."""
        return self._state.epoch

    @collective("the world")
    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        epochs: int = 10,
        validation_data: tuple[ArrayLike, ArrayLike] | None = None,
        verbose: bool = True,
    ) -> list[EpochMetrics]:
        """Train; a further call goes on where the last one ended, with the optimizer's state and the count of epochs.

        Collective over the world.

        Args:
            x: inputs [N, *input_shape], real numbers; only read, and not copied if large.
            y: labels [N], integers in 0 .. num_classes - 1.
            epochs: passes over the samples.
            validation_data: inputs and labels to evaluate on after each epoch.
            verbose: whether rank 0 writes a line for each epoch to standard output.

        Returns:
            Loss, accuracy and evaluation of each epoch of this call.

        Raises:
            ConfigError: `epochs` is impossible.
            DataError: the arrays do not fit the model, or (at the first call) hold NaN or infinity.
            RankMismatchError: ranks were given different arrays or arguments.
            NonFiniteError: the loss became NaN or infinite; the weights are those before that step, but the
                model trains no further.
        """
        engine = self._opened
        if self._broken:
            raise LeptonError("this model's last fit ended within a step: make a new LeptonModel, and load what was saved")
        check = partial(self._reader.read_fit, x, y, epochs, validation_data)
        splits, num_epochs = agree_on_call(self._comm, "fit", check)
        if self._normalisation is None:
            self._normalisation = measure_normalisation(splits.train, self._config.data.normalise, self._comm)
        num_steps = self._state.step + num_epochs * -(-splits.train.num_samples // self._config.train.global_batch)
        config = replace(self._config, train=replace(self._config.train, steps=num_steps))
        run = attach_data(engine, config, splits, self._normalisation)
        history = _History(self._state, show=verbose and self.rank == 0)
        self._broken = True  # until it is known to have ended well
        try:
            train(run, self._state, None, lambda: False, history)
            self._broken = False
        finally:
            self._state = history.state
        return history.epochs

    @collective("the world")
    def evaluate(self, x: ArrayLike, y: ArrayLike) -> ClassificationMetrics:
        """Return accuracy, macro precision, recall and F1, and the metrics of each class.

        Collective over the world.

        Args:
            x: inputs [N, *input_shape].
            y: labels [N].

        Raises:
            LeptonError: the model was neither trained nor loaded.
            DataError: the arrays do not fit the model.
            RankMismatchError: ranks were given different arrays.
        """
        network, normalisation = self._opened.network, self._learnt
        samples = agree_on_call(self._comm, "evaluate", lambda: self._reader.read_samples(x, y))
        found = evaluate(network, inference_loader(network, samples, normalisation)).classification
        assert found is not None  # its task is classification
        return found

    @collective("the world")
    def predict_proba(self, x: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class, float32 [N, num_classes], the caller's own, on all ranks.

        Collective over the world.

        Args:
            x: inputs [N, *input_shape].

        Raises:
            LeptonError: the model was neither trained nor loaded.
            DataError: the array does not fit the model.
            RankMismatchError: ranks were given different arrays.
        """
        network, normalisation = self._opened.network, self._learnt
        samples = agree_on_call(self._comm, "predict", lambda: self._reader.read_inputs(x))
        probabilities = np.empty((samples.num_samples, self._num_classes), np.float32)
        position = 0
        for rows in predict(network, inference_loader(network, samples, normalisation)):  # none but on rank 0
            probabilities[position : position + len(rows)] = rows
            position += len(rows)
        wait(self._comm.Ibcast(probabilities, 0))
        return probabilities

    @collective("the world")
    def predict(self, x: ArrayLike) -> NDArray[np.int64]:
        """Return the most probable class of each sample, int64 [N], on all ranks.

        Collective over the world. Arguments and errors are those of `predict_proba`.
        """
        classes: NDArray[np.int64] = self.predict_proba(x).argmax(axis=1)
        return classes

    @collective("the world")
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, optimizer state and normalisation to a folder, in the place of what an earlier `save` left there.

        Collective over the world. The folder serves `load`, and `python -m lepton_mpi evaluate` and `predict`.

        Args:
            path: the folder, made where it is missing, on a file system that all ranks see; rank 0's counts.

        Raises:
            LeptonError: the model was neither trained nor loaded.
            CheckpointError: the folder is that of a training run, or cannot be written.
        """
        network, normalisation = self._opened.network, self._learnt
        folder = Path(path)
        agree_on_call(self._comm, "save", lambda: _check_folder(folder, self.rank))
        driver = self._config.checkpoint.driver
        extras = self._opened.exchange.extra_states
        written = save(network, normalisation, self._state, folder / "checkpoints", driver, extras)
        do_on_root(self._comm, lambda: complete_model_folder(folder, written, self._config))

    @collective("the world")
    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from what `save` or a training run left in a folder, whatever number of ranks wrote it.

        Collective over the world.

        Args:
            path: the folder; of several checkpoints the newest whole one is taken; rank 0's counts.

        Raises:
            CheckpointError: there is none, or it is of another model or optimizer.
        """
        network, checkpoints = self._opened.network, Path(path) / "checkpoints"
        agree_on_call(self._comm, "load", lambda: (None, ""))
        checkpoint = find_resumable(self._comm, checkpoints, _log)
        if checkpoint is None:
            raise CheckpointError(f"no checkpoint found in {checkpoints}: give a folder that save or training wrote")
        expected, (found, _) = self._data_shape, read_data_shape(self._comm, checkpoint)
        if found != expected:
            raise CheckpointError(
                f"{checkpoint}: this model has input shape {expected.input_shape} and {expected.num_classes} classes, the "
                f"checkpoint {found.input_shape} and {found.num_classes}: make a LeptonModel of that shape, or give another folder"
            )
        state, self._normalisation = load(network, checkpoint, extras=self._opened.exchange.extra_states)
        # A run may have been stopped within an epoch, of a data set that need not be the next fit's.
        self._state = TrainState(state.step, state.epoch + 1, 0) if state.position else state

    @collective("the world")
    def close(self) -> None:
        """Give all communicators back; the model cannot be used any more.

        Collective over the world. May be called twice.

        Raises:
            RankMismatchError: other ranks are in another method of the model.
        """
        if self._engine is None or MPI.Is_finalized():
            return
        atexit.unregister(self.close)
        agree_on_call(self._comm, "close", lambda: (None, ""))
        self._engine.free()
        self._comm.Free()
        self._engine = None

    def __enter__(self) -> LeptonModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an error of this rank alone the others never come to close() with it.
        if kind is None:
            self.close()

    @property
    def _opened(self) -> Engine:
        """The engine of a model that is not closed."""
        if self._engine is None:
            raise LeptonError("this LeptonModel is closed: make a new one, and load what was saved")
        return self._engine

    @property
    def _learnt(self) -> Normalisation:
        """How inputs are normalised, which is known once something was learnt."""
        if self._normalisation is None:
            raise LeptonError("this LeptonModel has learnt nothing yet: call fit or load first")
        return self._normalisation


class _History(Watcher):
    """Keeps what each epoch found, and shows it."""

    def __init__(self, state: TrainState, show: bool) -> None:
        self.epochs: list[EpochMetrics] = []
        self.state = state
        self._show = show

    def step_done(self, state: TrainState, metrics: StepMetrics, samples_per_second: float) -> None:
        self.state = state

    def epoch_done(self, metrics: EpochMetrics, state: TrainState) -> None:
        self.epochs.append(metrics)
        if self._show:
            sys.stdout.write(metrics.describe() + "\n")
            sys.stdout.flush()


def _check_folder(folder: Path, rank: int) -> tuple[None, str]:
    """Refuse to replace the checkpoints of a training run. Local; rank 0 looks."""
    if rank == 0 and is_run_folder(folder):
        raise CheckpointError(f"{folder} is the folder of a training run, whose checkpoints must stay: give another one")
    return None, ""
