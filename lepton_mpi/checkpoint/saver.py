"""Checkpoints that are written while training goes on: a copy of the state now, the commit at a later step boundary."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.background import BackgroundWriter
from lepton_mpi.checkpoint.commit import commit, committed_path, make_temporary
from lepton_mpi.checkpoint.failure import as_checkpoint_error, failing_together
from lepton_mpi.checkpoint.hdf5 import AttributeValue, create_data_file
from lepton_mpi.checkpoint.layout import DATA_FILE, TensorSlice
from lepton_mpi.checkpoint.plan import make_plan
from lepton_mpi.checkpoint.save_plan import SavePlan
from lepton_mpi.checkpoint.space import reserve_space
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.checkpoint.writer import describe_file, meta_attributes
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

# The slowest disk of all may take this long over a checkpoint at the end of a run.
_SLOWEST_S = 6 * 3600.0
# How long a rank that ends by an error waits for a vote of the others that is still on its way.
_PARTING_S = 1.0
_FAILED, _BUSY, _DONE = -1, 0, 1
_Stage = Literal["write", "check", "commit"]
_NEXT: dict[_Stage, _Stage] = {"write": "check", "check": "commit"}


@dataclass
class _Save:
    """The save in flight, as far as all ranks agree about it, and this rank's part in its present stage."""

    step: int
    root: Path
    temporary: Path
    stage: _Stage = "write"
    mine: int = _BUSY
    error: str = ""
    digests: list[int] = field(default_factory=list)
    said: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    agreed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    vote: MPI.Request | None = None

    @property
    def file(self) -> Path:
        return self.temporary / DATA_FILE


@final
class BackgroundSaver:
    """Saves with all ranks while they train on. One save is in flight at most.

    A save takes three stages: every rank's process writes its copy and syncs it, then reads back what the next rank wrote,
    then rank 0 commits. All ranks pass from stage to stage at the same call of `advance`, by a message each that says how far
    its process is; it is sent in one call and read in the next, so that nobody waits for it.

    Args:
        comm: communicator whose ranks hold the tensors; duplicated.
        storage: hints and alignment for parallel file systems.
    """

    @collective("comm")
    def __init__(self, comm: MPI.Intracomm, storage: Storage = DEFAULT_STORAGE) -> None:
        """Set up nothing but a communicator. Collective over comm."""
        self._comm = comm.Dup()
        self._storage = storage
        self._plan: SavePlan | None = None
        self._writer: BackgroundWriter | None = None
        self._save: _Save | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a save is in flight; the same on all ranks."""
        return self._save is not None

    @property
    def process_id(self) -> int | None:
        """Number of this rank's process, if it has one."""
        return None if self._writer is None else self._writer.process_id

    @collective("comm")
    def begin(self, root: Path, step: int, slices: Sequence[TensorSlice], attributes: Mapping[str, AttributeValue]) -> None:
        """Copy the state and have it written.

        Collective over comm. When this returns, the arrays may change. None may be in flight.

        Args:
            root: directory of the run's checkpoints, on a file system all ranks see; rank 0's counts.
            step: global step; rank 0's counts.
            slices: what this rank writes, see `write_checkpoint`; always the same blocks of the same tensors.
            attributes: what else to remember; rank 0's count.

        Raises:
            CheckpointError: the save cannot even begin, on all ranks alike; nothing is in flight then.
        """
        assert self._save is None
        root, step = self._comm.bcast((Path(root), step), root=0)
        plan = self._planned(slices)
        temporary: Path | None = None
        offsets: dict[str, int] | None = None
        try:
            with failing_together(self._comm, f"begin a checkpoint in {root}"):
                if self._comm.rank == 0:
                    root = root.absolute()
                    temporary = make_temporary(root, step)
                    meta = meta_attributes(step, attributes)
                    offsets = create_data_file(temporary / DATA_FILE, plan.tensors, meta, plan.table, self._storage)
                    reserve_space(temporary / DATA_FILE)
                plan.require_same(slices)
                self._copy(plan, slices)
            root, temporary, offsets = self._comm.bcast((root, temporary, None if offsets == plan.offsets else offsets), root=0)
            assert temporary is not None
            if offsets is not None:  # the first time, or in a folder of another file system
                self._place(plan, offsets)
        except BaseException:
            if self._comm.rank == 0 and temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._save = _Save(step, root, temporary)
        if self._writer is None:
            self._save.mine = _DONE
        else:
            self._writer.write(self._save.file)

    @collective("comm")
    def advance(self) -> Path | None:
        """Learn how far the save in flight is, and bring it to its next stage if all ranks are done with this one.

        Collective over comm. Cheap; nobody waits for a disk, but for the short commit by rank 0.

        Returns:
            The directory of a checkpoint that is now whole, verified and on the disk, or None.

        Raises:
            CheckpointError: the save failed, on all ranks alike; nothing of it remains, and none is in flight.
        """
        save = self._save
        if save is None:
            return None
        if save.vote is not None:
            wait(save.vote, "the progress of a checkpoint", _SLOWEST_S)
            save.vote = None
            agreed = int(save.agreed[0])
            if agreed == _FAILED:
                self._give_up(save)
            if agreed == _DONE and save.stage == "commit":
                self._save = None
                return committed_path(save.root, save.step)
            if agreed == _DONE:
                self._enter(save, _NEXT[save.stage])
        self._look(save, 0.0)
        save.said[0] = save.mine
        save.vote = self._comm.Iallreduce(save.said, save.agreed, MPI.MIN)
        return None

    @collective("comm")
    def drain(self) -> Path | None:
        """Wait for the save in flight.

        Collective over comm.

        Returns:
            The directory of the checkpoint that is now whole, or None if none was in flight.

        Raises:
            CheckpointError: the save failed, on all ranks alike.
        """
        path = None
        while self._save is not None and path is None:
            while self._save.vote is None and self._save.mine == _BUSY:
                self._look(self._save, 1.0)
            path = self.advance()
        return path

    @collective("comm")
    def close(self) -> None:
        """End the process and give the communicator back.

        Collective over comm. A save in flight is given up.
        """
        self.abandon()
        self._comm.Free()

    def abandon(self) -> None:
        """End the process and what is in flight. Local; for a rank that ends by an error."""
        save, self._save = self._save, None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if save is None:
            return
        deadline = time.monotonic() + _PARTING_S
        while save.vote is not None and not save.vote.Test() and time.monotonic() < deadline:
            time.sleep(1e-3)
        if self._comm.rank == 0:
            shutil.rmtree(save.temporary, ignore_errors=True)

    @collective("comm")
    def _planned(self, slices: Sequence[TensorSlice]) -> SavePlan:
        """Return what is the same in every save. Collective over comm. Messages are sent at the first call only."""
        if self._plan is None:
            self._plan = SavePlan(slices, make_plan(self._comm, slices, digested=False), self._comm)
        return self._plan

    def _copy(self, plan: SavePlan, slices: Sequence[TensorSlice]) -> None:
        """Bring the state into the memory of the process, and start one where there is none."""
        if self._writer is not None and not self._writer.is_alive:
            self._writer.close()
            self._writer = None
        if self._writer is None and plan.nbytes:
            self._writer = BackgroundWriter(plan.nbytes, plan.write, plan.check)
        if self._writer is not None:
            plan.copy(slices, self._writer.memory)

    def _place(self, plan: SavePlan, offsets: dict[str, int]) -> None:
        """Say where in the file everything lies. Local."""
        plan.place(offsets)
        if self._writer is not None:
            self._writer.plan(plan.write, plan.check)

    def _look(self, save: _Save, timeout_s: float) -> None:
        """Learn how far the own process is."""
        if save.mine != _BUSY or self._writer is None:
            return
        try:
            answer = self._writer.answer(timeout_s)
        except CheckpointError as error:
            self._fail(save, error)
            return
        if answer is None:
            return
        save.mine = _DONE
        save.digests = answer.get("digests", save.digests)
        if "damaged" in answer and self._plan is not None:
            what = self._plan.describe(answer["damaged"])
            text = f"{what}: expected CRC-32 {answer['expected']:#010x}, found {answer['found']:#010x}; the file system lost data"
            self._fail(save, CheckpointError(text))

    def _fail(self, save: _Save, error: CheckpointError) -> None:
        save.mine, save.error = _FAILED, f"cannot {save.stage} {save.file}: {error}"

    @collective("comm")
    def _enter(self, save: _Save, stage: _Stage) -> None:
        """Begin a stage. Collective over comm."""
        save.stage, save.mine = stage, _DONE
        plan = self._plan
        assert plan is not None
        if stage == "check":
            digests = plan.exchange(save.digests, self._comm)
            if self._writer is not None:
                save.mine = _BUSY
                self._writer.check(save.file, digests)
        elif self._comm.rank == 0:
            try:
                plan.write_table(save.file)
                manifest = describe_file(save.file, save.step, plan.tensors, len(plan.table), plan.offsets)
                commit(save.temporary, save.root, manifest)
            except Exception as error:
                self._fail(save, CheckpointError(str(as_checkpoint_error(error, "complete it"))))

    @collective("comm")
    def _give_up(self, save: _Save) -> None:
        """Remove what was written and raise what went wrong first. Collective over comm."""
        if save.mine == _BUSY and self._writer is not None:
            self._writer.close()
            self._writer = None
        self._save = None
        errors = self._comm.allgather(save.error)
        if self._comm.rank == 0:
            shutil.rmtree(save.temporary, ignore_errors=True)
        rank = next(index for index, text in enumerate(errors) if text)
        raise CheckpointError(errors[rank] if rank == 0 else f"rank {rank}: {errors[rank]}")
