"""Checkpoints that are written while training goes on: copied before the state next changes, committed at a later step boundary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from lepton_mpi.checkpoint.background import BackgroundWriter
from lepton_mpi.checkpoint.commit import commit, committed_path, make_temporary
from lepton_mpi.checkpoint.failure import as_checkpoint_error, failing_together
from lepton_mpi.checkpoint.flight import BUSY, DONE, FAILED, NEXT, Flight, Stage
from lepton_mpi.checkpoint.frame import FileMaker
from lepton_mpi.checkpoint.hdf5 import AttributeValue
from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.plan import make_plan
from lepton_mpi.checkpoint.save_plan import SavePlan
from lepton_mpi.checkpoint.space import reserve_space
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.checkpoint.worker import Worker
from lepton_mpi.checkpoint.writer import describe_file, meta_attributes
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

# The slowest disk of all may take this long over a checkpoint at the end of a run.
_SLOWEST_S = 6 * 3600.0
# How long a rank that ends by an error waits for a vote of the others that is still on its way, and for its own copy or commit.
_PARTING_S = 1.0


@final
class BackgroundSaver:
    """Saves with all ranks while they train on. One save is in flight at most.

    A save takes four stages: every rank copies its state; every rank's process writes and syncs the copy, then reads back what the
    next rank wrote; then rank 0 commits. All ranks pass from stage to stage at the same call of `advance`, by a message each that
    says how far it is; it is sent in one call and read in the next, so that nobody waits for it. Copy and commit are work
    of a thread. So whoever changes the state next waits for the copy (`settle`), on all ranks that share memory.

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
        self._maker: FileMaker | None = None
        self._writer: BackgroundWriter | None = None
        self._worker = Worker("checkpoint")
        self._save: Flight | None = None

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
        """Begin to copy the state, to have it written.

        Collective over comm. The arrays may change once all ranks that share memory have come back from `settle`. None may be
        in flight.

        Args:
            root: directory of the run's checkpoints, on a file system all ranks see; rank 0's counts.
            step: global step; rank 0's counts.
            slices: what this rank writes, see `write_checkpoint`; always the same blocks of the same tensors.
            attributes: what else to remember; rank 0's count.

        Raises:
            CheckpointError: the save cannot even begin, on all ranks alike; nothing is in flight then.
        """
        assert self._save is None
        plan = self._planned(slices)
        save = Flight(step, Path(root))
        try:
            with failing_together(self._comm, f"begin a checkpoint in {root}"):
                if self._comm.rank == 0:
                    save.root = save.root.absolute()
                    meta = meta_attributes(step, attributes)
                    self._create(save, plan, meta)
                plan.require_same(slices)
                self._provide_writer(plan)
        except BaseException:
            save.discard()
            raise
        self._save = save
        self._work(save, lambda: self._copy(save, plan, slices))

    def settle(self) -> None:
        """Wait until this rank's copy of the state is made, if one is being made.

        Local. What went wrong with it `advance` raises, on all ranks alike.
        """
        if self._save is not None:
            self._save.copied.wait()

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
            if agreed == FAILED:
                self._give_up(save)
            if agreed == DONE and save.stage == "commit":
                self._save = None
                return committed_path(save.root, save.step)
            if agreed == DONE:
                self._enter(save, NEXT[save.stage])
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
            while self._save.vote is None and self._save.mine == BUSY:
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
        deadline = time.monotonic() + _PARTING_S
        if save is not None:
            save.dropped.set()
        has_ended = self._worker.wait(_PARTING_S)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if save is None:
            return
        while save.vote is not None and not save.vote.Test() and time.monotonic() < deadline:
            time.sleep(1e-3)
        # A commit that still hangs may yet give the folder its name, so nothing must be missing in it.
        if self._comm.rank == 0 and has_ended:
            save.discard()

    @collective("comm")
    def _planned(self, slices: Sequence[TensorSlice]) -> SavePlan:
        """Return what is the same in every save. Collective over comm. Messages are sent at the first call only."""
        if self._plan is None:
            self._plan = SavePlan(slices, make_plan(self._comm, slices), self._comm)
        return self._plan

    def _provide_writer(self, plan: SavePlan) -> None:
        """Start a process where there is none, or none that lives."""
        if self._writer is not None and not self._writer.is_alive:
            self._writer.close()
            self._writer = None
        if self._writer is None and plan.nbytes:
            self._writer = BackgroundWriter(plan.nbytes, plan.write, plan.check)

    def _work(self, save: Flight, work: Callable[[], None]) -> None:
        """Have something done in the thread; `_look` learns how it ended."""
        save.mine = BUSY
        try:
            self._worker.start(work)
        except RuntimeError as error:  # the system has no thread left
            save.copied.set()
            save.fail(error)

    def _copy(self, save: Flight, plan: SavePlan, slices: Sequence[TensorSlice]) -> None:
        """Bring the state into the memory of the process. In the thread."""
        try:
            if self._writer is not None:
                self._writer.reserve()
                plan.copy(slices, self._writer.memory, save.dropped)
        finally:
            save.copied.set()

    def _create(self, save: Flight, plan: SavePlan, meta: Mapping[str, AttributeValue]) -> None:
        """Make the folder and the file in it, with all its space. On rank 0."""
        save.temporary = make_temporary(save.root, save.step)
        self._maker = self._maker or FileMaker(plan.tensors, plan.table, self._storage)
        save.offsets = self._maker.make(save.file, meta)
        reserve_space(save.file)

    def _place(self, plan: SavePlan, offsets: dict[str, int]) -> None:
        """Say where in the file everything lies. Local."""
        plan.place(offsets)
        if self._writer is not None:
            self._writer.plan(plan.write, plan.check)

    def _look(self, save: Flight, timeout_s: float) -> None:
        """Learn how far the own thread and process are."""
        if save.mine != BUSY or not self._worker.wait(timeout_s):
            return
        error = self._worker.take_error()
        if error is not None:
            save.fail(as_checkpoint_error(error, f"begin a checkpoint in {save.root}" if save.stage == "copy" else "complete it"))
        elif save.stage in ("copy", "commit") or self._writer is None:
            save.mine = DONE
        else:
            self._listen(save, self._writer, timeout_s)

    def _listen(self, save: Flight, writer: BackgroundWriter, timeout_s: float) -> None:
        """Learn how far the own process is."""
        try:
            answer = writer.answer(timeout_s)
        except CheckpointError as error:
            save.fail(error)
            return
        if answer is None:
            return
        save.mine = DONE
        save.digests = answer.get("digests", save.digests)
        if "damaged" in answer and self._plan is not None:
            save.fail(self._plan.damage(answer["damaged"], answer["found"], answer["expected"]))

    @collective("comm")
    def _enter(self, save: Flight, stage: Stage) -> None:
        """Begin a stage. Collective over comm."""
        save.stage, save.mine = stage, DONE
        plan = self._plan
        assert plan is not None
        if stage == "write":
            changed = save.offsets if save.offsets != plan.offsets else None  # the first time, or in another file system
            told = (save.root, save.step, save.temporary, changed)
            save.root, save.step, save.temporary, offsets = self._comm.bcast(told, root=0)
            if offsets is not None:
                self._place(plan, offsets)
            if self._writer is not None:
                save.mine = BUSY
                self._writer.write(save.file)
        elif stage == "check":
            digests = plan.exchange(save.digests, self._comm)
            if self._writer is not None:
                save.mine = BUSY
                self._writer.check(save.file, digests)
        elif self._comm.rank == 0:
            self._work(save, lambda: _complete(save, plan))

    @collective("comm")
    def _give_up(self, save: Flight) -> None:
        """Remove what was written and raise what went wrong first. Collective over comm."""
        save.dropped.set()
        self._worker.wait()
        if save.mine == BUSY and self._writer is not None:
            self._writer.close()
            self._writer = None
        self._save = None
        errors = self._comm.allgather(save.error)
        if self._comm.rank == 0:
            save.discard()
        rank = next(index for index, text in enumerate(errors) if text)
        raise CheckpointError(errors[rank] if rank == 0 else f"rank {rank}: {errors[rank]}")


def _complete(save: Flight, plan: SavePlan) -> None:
    """Put the digests into the file, and commit it. Local, on rank 0, in its thread."""
    assert save.temporary is not None
    plan.write_table(save.file)
    commit(save.temporary, save.root, describe_file(save.file, save.step, plan.tensors, len(plan.table), plan.offsets))
