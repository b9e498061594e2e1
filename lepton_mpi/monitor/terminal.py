"""Finding out whether anybody watches, and on how wide a terminal.

Under a launcher a rank's own standard output tells nothing: Open MPI gives every rank a
pseudo-terminal even if the output of mpirun goes to a file, MPICH gives it a pipe even if the
output goes to a terminal. What counts is the standard output of the launcher itself.
And Open MPI 5 forwards whole lines only, so a line that is redrawn must be written to the
launcher's terminal directly.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Final, TextIO, final

# Processes that print what the ranks print: Open MPI 5 and 4, MPICH, Intel MPI.
_FRONT_ENDS: Final = frozenset({"prterun", "mpirun", "mpiexec", "orterun", "mpiexec.hydra"})
# Processes that start ranks for them, on this host or another; names as the kernel keeps them, 15 bytes at most.
_DAEMONS: Final = frozenset({"prted", "orted", "hydra_pmi_proxy", "hydra_bstrap_pr"})
_DEFAULT_COLUMNS: Final = 80  # of the DEC VT100, which terminals and programs fall back to
_PROC: Final = Path("/proc")


@final
class Terminal:
    """A terminal to draw on.

    Args:
        stream: written to.
        descriptor: file descriptor of the terminal, asked for the width.
        owned: whether `close` closes the stream.
    """

    def __init__(self, stream: TextIO, descriptor: int, owned: bool) -> None:
        self.stream = stream
        self._descriptor = descriptor
        self._owned = owned

    def columns(self) -> int:
        """Return the present width; 80 where the terminal does not know. Local."""
        try:
            return os.get_terminal_size(self._descriptor).columns or _DEFAULT_COLUMNS
        except OSError:
            return _DEFAULT_COLUMNS

    def close(self) -> None:
        """Close the stream if it was opened for this terminal. Local; may be called twice."""
        if self._owned and not self.stream.closed:
            self.stream.close()


def find_terminal(stream: TextIO, proc: Path = _PROC, pid: int | None = None) -> Terminal | None:
    """Return the terminal on which a person sees what is written to a stream, if there is one.

    Local.

    Args:
        stream: this process's output.
        proc: where the kernel shows the processes.
        pid: this process.

    Returns:
        The terminal, to be closed by the caller; None where the output goes to a file or a pipe,
        through a launcher on another host, to a terminal that cannot move its cursor, or
        where it cannot be told.
    """
    descriptor = _descriptor(stream)
    if descriptor is None or os.environ.get("TERM") == "dumb":
        return None
    ancestors = _ancestors(proc, os.getpid() if pid is None else pid)
    chain = _launchers(ancestors)
    if not chain:
        return Terminal(stream, descriptor, owned=False) if os.isatty(descriptor) else None
    front_end, name = chain[-1]
    # Below a launcher the stream must still lead to it: a rank's output may be redirected on its own.
    leads_there = os.isatty(descriptor) or any(_shares_pipe(proc, launcher, descriptor) for launcher, _ in chain)
    if name not in _FRONT_ENDS or not leads_there:
        return None
    return _open_terminal(proc / str(front_end) / "fd" / "1")


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory, or closed
        return None


def _ancestors(proc: Path, pid: int) -> list[tuple[int, str]]:
    """Return (pid, name) of the parent, its parent, and so on, as far as they can be read."""
    found = []
    parent = _parent_and_name(proc, pid)
    while parent is not None and parent[0] > 1:
        pid = parent[0]
        parent = _parent_and_name(proc, pid)
        if parent is not None:
            found.append((pid, parent[1]))
    return found


def _parent_and_name(proc: Path, pid: int) -> tuple[int, str] | None:
    """Return the parent and the name of a process from `/proc/<pid>/stat`, see proc_pid_stat(5)."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return int(rest.split()[1]), name


def _launchers(ancestors: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the daemons and the front end that carry the output, in its direction."""
    names = [name for _, name in ancestors]
    first = next((index for index, name in enumerate(names) if name in _DAEMONS or name in _FRONT_ENDS), None)
    if first is None:
        return []
    last = first
    while names[last] in _DAEMONS and last + 1 < len(names) and (names[last + 1] in _DAEMONS or names[last + 1] in _FRONT_ENDS):
        last += 1
    return ancestors[first : last + 1]


def _shares_pipe(proc: Path, pid: int, descriptor: int) -> bool:
    """Tell whether a process holds the other end of the pipe behind a descriptor."""
    own = os.fstat(descriptor)
    if not stat.S_ISFIFO(own.st_mode):
        return False
    try:
        held = list((proc / str(pid) / "fd").iterdir())
    except OSError:
        return False
    return any(_identity(path) == (own.st_dev, own.st_ino) for path in held)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_terminal(path: Path) -> Terminal | None:
    """Open a terminal for drawing, never waiting for it: Ctrl-S there must not stop the training."""
    try:
        if not stat.S_ISCHR(path.stat().st_mode):
            return None
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not os.isatty(descriptor):
        os.close(descriptor)
        return None
    # Unbuffered, so that what the terminal does not take is dropped and not kept.
    raw = io.FileIO(descriptor, "w")
    return Terminal(io.TextIOWrapper(raw, encoding="utf-8", errors="replace", write_through=True), descriptor, owned=True)
