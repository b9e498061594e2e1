"""When a run saves, what becomes of a save that fails, and which checkpoints stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

from lepton_mpi.checkpoint.background import background_obstacle
from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.retention import Retention, remove_checkpoint
from lepton_mpi.checkpoint.saver import BackgroundSaver
from lepton_mpi.checkpoint.storage import Storage
from lepton_mpi.checkpoint.worker import Worker
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError, LeptonError, SaveError
from lepton_mpi.train.model_folder import complete_model_folder
from lepton_mpi.train.resume import attributes_to_save, slices_to_save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

# A run's last checkpoint is tried so often, with a pause before each further try that doubles.
_LAST_TRIES = 3
_FIRST_PAUSE_S = 1.0
# After a failure the next try comes after this share of `checkpoint.every_steps`; it doubles with each further one.
_RETRY_SHARE = 8

_log = logging.getLogger(__name__)


class SaveWatcher:
    """What learns of a run's checkpoints; this one looks away. Local: it must not call collectives."""

    def before_checkpoint(self, root: Path) -> None:
        """Prepare for a save, on rank 0; may refuse it by a CheckpointError.

        Args:
            root: directory of the checkpoints; it may have been deleted meanwhile.
        """

    def checkpoint_done(self, path: Path) -> None:
        """Learn of a checkpoint that is whole and on the disk."""

    def checkpoint_failed(self, message: str) -> None:
        """Learn of one that could not be saved."""


class Saving:
    """The checkpoints of one run. At most one is in flight.

    Args:
        run: the run.
        root: directory for checkpoints; None: none are written.
        best: folder for the model of the best evaluation; None: it is not kept.
        watcher: told of checkpoints, and of those that could not be saved.
        step: step at which the run begins; one from a checkpoint is saved already.
        distrusted: names of checkpoints that were found damaged.
    """

    @collective("grid.world")
    def __init__(
        self, run: Run, root: Path | None, best: Path | None, watcher: SaveWatcher, step: int, distrusted: Collection[str] = ()
    ) -> None:
        """Set up nothing but communicators. Collective over grid.world.

        Raises:
            CheckpointError: a hint is malformed.
        """
        self._run, self._root, self._best, self._watcher = run, root, best, watcher
        config = run.config.checkpoint
        self._config, self._distrusted = config, distrusted
        self._world = run.network.grid.world
        self._storage = Storage(config.hints, config.alignment)
        self._storage.pairs()  # says at once what is malformed
        self._retention = Retention(config.keep_last, config.keep_every)
        self._saver = BackgroundSaver(self._world, self._storage) if self._is_asynchronous() else None
        if self._saver is not None:
            run.network.memory.background_readers.append(self._saver.settle)
        self._tidying = Worker("older checkpoints")
        # One way to write a run's files, whether anybody waits for it or not.
        self._driver = "direct" if self._saver is not None else config.driver
        self._saved_step = step if step else -1  # where the run begins there is nothing saved yet
        self._target: Path | None = None
        self._target_step = -1
        self._failures, self._retry_at, self._reason = 0, -1, ""

    @collective("grid.world")
    def _is_asynchronous(self) -> bool:
        """Return whether saves run beside training, alike on all ranks. Collective over grid.world."""
        wanted = self._config.asynchronous and (self._root is not None or self._best is not None)
        obstacles = self._world.allgather(background_obstacle())
        obstacle = next((text for text in obstacles if text), "")
        if wanted and self._config.driver == "mpio":
            obstacle = "MPI-IO needs all ranks"
        if wanted and obstacle and self._world.Get_rank() == 0:
            _log.info("checkpoints are written while training waits: %s", obstacle)
        return wanted and not obstacle

    @collective("grid.world")
    def after_step(self, state: TrainState, improved: bool) -> None:
        """Bring the save in flight on, and begin those that are due.

        Collective over grid.world.

        Args:
            state: where the run is.
            improved: whether an evaluation of this state was the best so far.

        Raises:
            SaveError: one failed, and the configuration requires them.
        """
        if self._saver is not None and self._saver.in_flight:
            self._attempt(self._saver.advance)
        if self._best is not None and improved:
            self._begin(self._best / "checkpoints", state)
        if self._root is not None and self._is_due(state.step):
            self._begin(self._root, state)

    @collective("grid.world")
    def finish(self, state: TrainState) -> None:
        """Wait for the save in flight, and save the end of the run.

        Collective over grid.world.

        Args:
            state: where the run ended.

        Raises:
            SaveError: the state could not be saved, several tries long.
        """
        self.drain()
        self._tidying.wait()
        for number in range(1, _LAST_TRIES + 1):
            if self._root is None or self._saved_step == state.step:
                break
            self._failures = 0
            self._write(self._root, state)
            if self._failures and number < _LAST_TRIES:
                time.sleep(_FIRST_PAUSE_S * 2 ** (number - 1))
        if self._root is not None and self._saved_step != state.step:
            last = f"the newest one is of step {self._saved_step}" if self._saved_step >= 0 else "there is none"
            raise SaveError(
                f"the last checkpoint of the run, of step {state.step}, could not be saved in {_LAST_TRIES} tries: {self._reason}; "
                f"{last}. Mend {self._root} and start again with the same run.dir"
            )

    @collective("grid.world")
    def keep_best(self, state: TrainState) -> None:
        """Keep the model of an evaluation after the last step, if the best one is kept.

        Collective over grid.world.

        Raises:
            SaveError: it failed, and the configuration requires it.
        """
        if self._best is not None:
            self._write(self._best / "checkpoints", state)

    @collective("grid.world")
    def drain(self) -> None:
        """Wait for the save in flight.

        Collective over grid.world.

        Raises:
            SaveError: it failed, and the configuration requires it.
        """
        if self._saver is not None and self._saver.in_flight:
            self._attempt(self._saver.drain)

    def abandon(self) -> None:
        """Drop the save in flight. Local; for a rank that ends by an error."""
        if self._saver is not None:
            self._stop_reading(self._saver)
            self._saver.abandon()

    @collective("grid.world")
    def close(self) -> None:
        """Give communicators back. Collective over grid.world."""
        self._tidying.wait()
        if self._saver is not None:
            self._stop_reading(self._saver)
            self._saver.close()

    def _stop_reading(self, saver: BackgroundSaver) -> None:
        readers = self._run.network.memory.background_readers
        if saver.settle in readers:
            readers.remove(saver.settle)

    def _is_due(self, step: int) -> bool:
        every = self._config.every_steps
        if self._retry_at >= 0:
            return step >= self._retry_at
        return every > 0 and step % every == 0

    @collective("grid.world")
    def _begin(self, root: Path, state: TrainState) -> None:
        """Save without waiting for it, if that can be. Collective over grid.world."""
        if self._saver is None:
            self._write(root, state)
            return
        if self._saver.in_flight:
            _log.debug("step %d: waiting for the checkpoint of step %d", state.step, self._target_step)
            self._attempt(self._saver.drain)
        self._aim(root, state.step)
        saver = self._saver

        def begin() -> None:
            self._prepare(root)
            slices = slices_to_save(self._run.network, self._run.normalisation, self._run.extras)
            saver.begin(root, state.step, slices, attributes_to_save(self._run.network, state))

        self._attempt(begin)

    @collective("grid.world")
    def _write(self, root: Path, state: TrainState) -> None:
        """Save and wait for it. Collective over grid.world."""
        self._aim(root, state.step)

        def write() -> Path:
            self._prepare(root)
            slices = slices_to_save(self._run.network, self._run.normalisation, self._run.extras)
            attributes = attributes_to_save(self._run.network, state)
            return write_checkpoint(self._world, root, state.step, slices, attributes, self._driver, self._storage)

        self._attempt(write)

    def _aim(self, root: Path, step: int) -> None:
        """Note what is being saved; if it fails, `_failed` says when to try again."""
        self._target, self._target_step = root, step
        if root == self._root:
            self._retry_at = -1

    @collective("grid.world")
    def _prepare(self, root: Path) -> None:
        """Let the watcher look after the folder. Collective over grid.world."""
        self._tidying.wait()  # for the space that older checkpoints take
        with failing_together(self._world, f"prepare {root}"):
            if self._world.Get_rank() == 0:
                try:
                    self._watcher.before_checkpoint(root)
                except LeptonError as error:
                    raise CheckpointError(str(error)) from error

    @collective("grid.world")
    def _attempt(self, work: Callable[[], Path | None]) -> None:
        """Do a part of a save that fails on all ranks alike or on none. Collective over grid.world."""
        try:
            path = work()
            if path is not None:
                self._committed(path)
        except CheckpointError as error:
            self._failed(error)

    @collective("grid.world")
    def _committed(self, path: Path) -> None:
        """Announce a checkpoint, and let older ones go. Collective over grid.world."""
        _log.info("checkpoint %s", path)
        if self._best is not None and self._target == self._best / "checkpoints":
            best = self._best
            do_on_root(self._world, lambda: complete_model_folder(best, path, self._run.config))
            self._watcher.checkpoint_done(path)
            return
        self._saved_step, self._failures, self._retry_at = self._target_step, 0, -1
        self._watcher.checkpoint_done(path)
        if self._world.Get_rank() == 0:
            self._tidy(path)

    def _tidy(self, newest: Path) -> None:
        """Delete what need not stay: a file takes longer to free than training may wait."""
        self._tidying.wait()
        if self._saver is None:
            self._prune(newest)
            return
        try:
            self._tidying.start(lambda: self._prune(newest))
        except RuntimeError:  # the system has no thread left
            self._prune(newest)

    def _prune(self, newest: Path) -> None:
        """Delete what need not stay; what fails here fails no checkpoint."""
        try:
            for path in self._retention.surplus(newest.parent, newest, self._distrusted):
                remove_checkpoint(path)
        except OSError as error:
            _log.warning("older checkpoints in %s could not be removed: %s", newest.parent, error)

    def _failed(self, error: CheckpointError) -> None:
        """Report a failure, and say when to try again; alike on all ranks."""
        what = f"the checkpoint of step {self._target_step} could not be saved"
        self._reason = str(error)
        if self._config.required:
            raise SaveError(f"{what}: {error}; checkpoint.required ends the run") from error
        every, again = self._config.every_steps, "training goes on"
        if self._target == self._root:
            self._failures += 1
            if every:
                wait = min(max(every // _RETRY_SHARE, 1) * 2 ** (self._failures - 1), every)
                self._retry_at = self._target_step + wait
                again = f"training goes on, the next try is at step {self._retry_at}"
        message = f"{what}: {error}; {again}"
        if self._world.Get_rank() == 0:
            _log.warning("%s", message)
        self._watcher.checkpoint_failed(message)
