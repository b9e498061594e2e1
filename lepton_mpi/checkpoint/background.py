"""A process beside a rank that writes copies of its state: how to start it, to fill its memory, and to hear from it."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint import write_process
from lepton_mpi.checkpoint.write_process import Extent
from lepton_mpi.errors import CheckpointError

# A terminated process that does not end, as one that waits for a dead file server, is left to the system after this.
_END_S = 2.0
_ASKED_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def background_obstacle() -> str:
    """Return why this process cannot have one that writes beside it; empty if it can. Local."""
    if not sys.executable:
        return "nobody knows the path of the Python interpreter"
    return "" if sys.platform.startswith("linux") else "shared memory without a name exists on Linux alone"


@final
class BackgroundWriter:
    """The process and the memory that it shares with this rank.

    Local. The memory has no name, so that it is freed with its last user however the job ends; the process ends with
    this one: its standard input ends then, and Linux sends it SIGKILL.

    Args:
        nbytes: size of the memory.
        write: extents that it writes, from the memory.
        check: extents of another rank that it reads back.

    Attributes:
        memory: the shared memory, uint8 [nbytes].

    Raises:
        CheckpointError: there is no address space, or no process can be started.
    """

    def __init__(self, nbytes: int, write: Sequence[Extent], check: Sequence[Extent]) -> None:
        self._nbytes = max(nbytes, 1)
        self._descriptor = -1
        try:
            self._descriptor = os.memfd_create("lepton-checkpoint")
            os.ftruncate(self._descriptor, self._nbytes)
            self._shared = mmap.mmap(self._descriptor, self._nbytes)
            self._process = _start(self._descriptor, self._nbytes)
        except OSError as error:
            self._close_descriptor()
            raise self._setup_error(error) from error
        self.memory: NDArray[np.uint8] = np.frombuffer(self._shared, np.uint8)
        self._received = b""
        self._failure = ""
        self.plan(write, check)

    @property
    def process_id(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process can be given work."""
        return self._process.poll() is None and not self._failure

    def reserve(self) -> None:
        """Have the system give all of the memory now, rather than by faults in the middle of a copy, which nobody can report.

        At the first call it clears the memory, which takes a while; further calls do nothing.

        Raises:
            CheckpointError: there is not so much.
        """
        if self._descriptor < 0:
            return
        try:
            os.posix_fallocate(self._descriptor, 0, self._nbytes)
        except OSError as error:
            raise self._setup_error(error) from error
        self._close_descriptor()

    def write(self, file: Path) -> None:
        """Have the memory written at its places in a file and forced to the disk."""
        self._send({"do": "write", "file": str(file)})

    def check(self, file: Path, digests: Sequence[int]) -> None:
        """Have another rank's extents read back and compared."""
        self._send({"do": "check", "file": str(file), "digests": list(digests)})

    def answer(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        """Return the answer to the last command, or None if there is none after a time.

        Raises:
            CheckpointError: the process reported a failure, or died.
        """
        deadline = time.monotonic() + timeout_s
        while not self._failure:
            line, separator, rest = self._received.partition(b"\n")
            if separator:
                self._received = rest
                answer: dict[str, Any] = json.loads(line)
                if answer.get("done") == "plan":
                    continue
                if "failed" in answer:
                    raise CheckpointError(str(answer["failed"]))
                return answer
            if not self._receive(deadline):
                return None
        raise CheckpointError(self._failure)

    def _receive(self, deadline: float) -> bool:
        """Read what the process says until a time, and return whether it said something or died."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1e3):
            return False
        received = os.read(self._process.stdout.fileno(), 2**20)
        self._received += received
        if not received:
            self._failure = f"the process {self.process_id} that writes checkpoints {self._describe_end()}"
        return True

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def plan(self, write: Sequence[Extent], check: Sequence[Extent]) -> None:
        """Say anew where the memory goes in files; for a file of another structure."""
        self._send({"do": "plan", "write": list(write), "check": list(check)})

    def close(self) -> None:
        """End the process, whatever it does, and free the memory. May be called twice."""
        self._close_descriptor()
        self._failure = self._failure or "it was ended"
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was still to be sent goes nowhere
                continue
        self._process.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return

    def _setup_error(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot set up a process that writes checkpoints, with {self._nbytes / 2**20:.0f} MiB of memory: {error}; "
            "free memory, or set checkpoint.asynchronous = false"
        )

    def _close_descriptor(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _send(self, command: dict[str, Any]) -> None:
        """Give the process work; if it is dead, `answer` says so."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # it is dead, or was ended meanwhile
            self._failure = self._failure or f"the process {self.process_id} that writes checkpoints {self._describe_end()}"


def _start(descriptor: int, nbytes: int) -> subprocess.Popen[bytes]:
    """Start the process. CPython starts it by vfork, which copies no memory that MPI has registered with a network."""
    script = Path(write_process.__file__)
    command = [sys.executable, "-I", "-S", str(script), str(descriptor), str(nbytes), str(os.getpid())]
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED_TO_STOP)  # until it ignores them itself
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(descriptor,), cwd="/"
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
