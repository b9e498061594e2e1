"""One job at a time in a run folder: a lock that names its holder and never outlives it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from lepton_mpi.errors import CheckpointError, ConfigError

LOCK_FILE = "run.lock"
# The holder says this often that it lives, and is taken for dead when it said nothing for so long. File servers may show what
# another host wrote only some seconds later.
BEAT_S = 10.0
SILENCE_S = 35.0
_LOOK_S = 1.0
_NBYTES = 4096
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")
# What flock(2) answers where the file system has no locks.
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of its node.
        boot: identity of the present boot of that node's kernel; empty where the system does not say.
        pid: its process.
        started: when that process started, in ticks since the boot; process numbers come again.
        job: number of its batch job, if it is in one.
        since: when it took the lock.
        beat: counts up while it lives.
    """

    host: str
    boot: str
    pid: int
    started: int
    job: str
    since: str
    beat: int = 0

    def describe(self) -> str:
        """Return one phrase for messages. Local."""
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    @property
    def is_here(self) -> bool:
        """Whether it runs under this kernel, so that it can be looked for."""
        return (self.host, self.boot) == (platform.node(), _boot_id())

    @property
    def lives(self) -> bool:
        """Whether its process, of this kernel, still runs."""
        return _start_ticks(self.pid) == self.started != 0


@final
class FolderLock:
    """Hold a run folder. Local, for rank 0; a context manager.

    On one host, and on file systems that lock over hosts, flock(2) decides: the system drops it with the process, however that
    ends. Where hosts do not see each other's locks, the record in the file decides: its holder counts up every 10 s, and who
    finds a record of another host waits for up to 35 s to see whether it still does.

    Args:
        folder: the run folder; it exists.

    Raises:
        ConfigError: another job holds it; the message names it.
        OSError: the lock file cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._mine = Holder(
            platform.node(),
            _boot_id(),
            os.getpid(),
            _start_ticks(os.getpid()),
            next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), ""),
            datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        self._descriptor = self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="folder-lock", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Make sure that the folder is still held, and take it anew if it was deleted.

        Local, before a save.

        Raises:
            CheckpointError: another job took it meanwhile; it must not be written any more.
            OSError: the lock file cannot be made anew.
        """
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                found = self._read(self._descriptor)
                if found is None or (found.host, found.pid, found.since) == (self._mine.host, self._mine.pid, self._mine.since):
                    return
                raise CheckpointError(f"the run folder was taken over by {found.describe()}; end one of the two")
        try:
            descriptor = self._take()
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)

    def release(self) -> None:
        """Give the folder back. May be called twice."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def _take(self) -> int:
        """Return the locked file with this process's record in it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locks = self._flock(descriptor)
            found = self._read(descriptor)
            if found is not None and self._is_held(found, locks):
                raise ConfigError(
                    f"run.dir: {self._path.parent} is in use by {found.describe()}: wait for it, end it, or name another run.dir"
                )
            self._write(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _flock(self, descriptor: int) -> bool:
        """Lock the file and return whether the file system can."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = self._read(descriptor)
            who = "another job, which is just starting" if found is None else found.describe()
            raise ConfigError(
                f"run.dir: {self._path.parent} is in use by {who}: wait for it, end it, or name another run.dir"
            ) from error
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _is_held(self, found: Holder, locks: bool) -> bool:
        """Whether a holder that is on record still lives, though its lock, if there are locks, is not in the way."""
        if found.is_here:
            return not locks and found.lives
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # a file server is asked anew at each opening
            try:
                now = self._read(descriptor)
            finally:
                os.close(descriptor)
            if now is None:
                return False
            if now != found:
                return True
        return False

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # the folder may be gone for a while
                self._write(self._descriptor, beat)

    def _write(self, descriptor: int, beat: int) -> None:
        record = json.dumps({**asdict(self._mine), "beat": beat}).encode()
        os.pwrite(descriptor, record.ljust(_NBYTES), 0)

    @staticmethod
    def _read(descriptor: int) -> Holder | None:
        """Return the record of a lock file, or None where there is none that can be read."""
        try:
            return Holder(**json.loads(os.pread(descriptor, _NBYTES, 0)))
        except (ValueError, TypeError):
            return None


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _start_ticks(pid: int) -> int:
    """Return when a process started, or 0 if there is none or nobody says (proc(5), field 22 of stat)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
