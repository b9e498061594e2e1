"""End a job with one message when a rank fails, and never leave the others waiting."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.logs import log_path
from lepton_mpi.runtime.mpi import MPI

# How long a failed rank waits for the others to fail alike before it ends the whole job. Errors
# that all ranks raise come within milliseconds of each other; users wait for this message.
_ALIKE_S = 2.0
# How long a rank that saw a neighbour die waits for the launcher to end the job before it leaves.
_LAUNCHER_S = 1.0


def failure_path(folder: Path) -> Path:
    """Return the file of a run folder that says why the run ended, if it failed. Local."""
    return folder / "logs" / "failure.txt"


class FailureReport:
    """Say once for the whole job why it ended.

    Attributes:
        step: step this rank is in, for messages.
    """

    def __init__(self, rank: int, size: int, traces: bool = False) -> None:
        """Start without a run folder: reports are then not yet shared between ranks.

        Args:
            rank, size: this rank and the number of ranks.
            traces: whether errors that lepton_mpi raises on purpose show where, as others always do; for
                callers whose own Python code is on the way.
        """
        self.step: int | None = None
        self._traces = traces
        self._rank, self._size = rank, size
        self._folder: Path | None = None

    def set_folder(self, folder: Path) -> None:
        """Name the run folder, which all ranks share. Local; one rank has removed its `failure_path` before."""
        self._folder = folder

    def say(self, text: str, rank: int | None = None) -> None:
        """Write the message to standard error, `failure.txt` and a rank's log, unless another rank was first. Local.

        Args:
            text: what happened.
            rank: whose log, which the message names; None: this rank's.
        """
        if not self._claim(text):
            return
        sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()
        path = self.log_of(self._rank if rank is None else rank)
        if path is not None:
            with contextlib.suppress(OSError), open(path, "a") as log:
                log.write(text.rstrip() + "\n")

    def describe(self, error: BaseException) -> str:
        """Return one message for an error: where, what, and which log tells more. Local."""
        place = f"rank {self._rank} on {socket.gethostname()}" + ("" if self.step is None else f", step {self.step}")
        if isinstance(error, LeptonError) and not self._traces:
            text = f"lepton_mpi: {type(error).__name__}: {error} ({place})"
        else:
            text = f"lepton_mpi: {place} failed:\n" + "".join(traceback.format_exception(error)).rstrip()
        log = self.log_of(self._rank)
        return text if log is None else f"{text}\nlog: {log}"

    def log_of(self, rank: int) -> Path | None:
        """Return the log file of a rank, or None while there is no run folder. Local."""
        return None if self._folder is None else log_path(self._folder, rank, self._size)

    def _claim(self, text: str) -> bool:
        """Return whether this rank is the first to report."""
        if self._folder is None:
            return True
        try:
            with open(failure_path(self._folder), "x") as file:
                file.write(text.rstrip() + "\n")
        except FileExistsError:
            return False
        except OSError:
            return True  # the folder is gone or full: better two messages than none
        return True


def end_with_error(comm: MPI.Intracomm, error: BaseException, report: FailureReport) -> int:
    """Report an error and return the exit code, or end the job if only some ranks failed.

    Called by every rank that failed; not by the others. If all ranks arrive, they failed alike,
    one of them speaks, and MPI can end in order. Otherwise the others wait somewhere for this
    rank, so the whole job is aborted.

    Args:
        comm: all ranks, a communicator used for nothing else.
        error: what this rank raised.
        report: where to say it.
    """
    code = error.exit_code if isinstance(error, LeptonError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    text = report.describe(error)
    arrived = comm.Ibarrier()
    deadline = time.monotonic() + _ALIKE_S
    while not arrived.Test():
        if time.monotonic() > deadline:
            report.say(text)
            comm.Abort(code)
        time.sleep(0.01)
    if comm.Get_rank() == 0:
        report.say(text)
    return code


class PeerWatch:
    """Notice within moments when another rank of this node dies, and end the job with one message.

    A thread, since the main thread may be waiting inside MPI for the very rank that died.
    """

    def __init__(self, node: MPI.Intracomm, world_rank: int, report: FailureReport) -> None:
        """Exchange process numbers and start watching.

        Collective over node.

        Args:
            node: ranks of this node.
            world_rank: this rank's number in the world, for messages.
            report: where to say what happened.
        """
        self._report = report
        self._wake_read, self._wake_write = os.pipe()
        self._ranks: dict[int, tuple[int, int]] = {}
        for rank, pid in node.allgather((world_rank, os.getpid())):
            if pid == os.getpid():
                continue
            try:
                self._ranks[os.pidfd_open(pid)] = (rank, pid)
            except (OSError, AttributeError):  # no pidfd in this kernel, or another process namespace
                continue
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)
        self._thread.start()

    def __enter__(self) -> PeerWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop watching. Local; peers may end from now on."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        for descriptor in (*self._ranks, self._wake_read, self._wake_write):
            os.close(descriptor)
        self._ranks.clear()

    def _watch(self) -> None:
        poll = select.poll()
        for descriptor in (self._wake_read, *self._ranks):
            poll.register(descriptor, select.POLLIN)
        ended = [descriptor for descriptor, _ in poll.poll()]
        if self._wake_read in ended:
            return
        rank, pid = self._ranks[ended[0]]
        where = "" if self._report.step is None else f" at step {self._report.step}"
        path = self._report.log_of(rank)
        log = "" if path is None else f"\nlog: {path}"
        self._report.say(
            f"lepton_mpi: rank {rank} on {socket.gethostname()} (process {pid}) died{where} without a word: killed by a signal, by "
            f"the batch system, or out of memory. Ending the job; start it again with the same --run.dir to resume{log}",
            rank,
        )
        time.sleep(_LAUNCHER_S)
        os._exit(1)
