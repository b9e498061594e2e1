"""A fork server for ranks: imports lepton_mpi once, with the shim asleep, and forks a rank for each client that mpirun starts.

    LD_PRELOAD=shim.so python server.py SOCKET SHIM

A rank is a true process of the job, forked before MPI is initialised, with the environment that mpirun made for its client. Only
the half second of imports is saved.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback

# Imported before any fork; none of them initialises MPI or starts a thread.
import lepton_mpi.train.command
import lepton_mpi.train.initial_weights  # noqa: F401
from crash_shim.job import run_rank


def serve(address: str, shim: str) -> None:
    """Fork ranks until standard input ends."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    clients: dict[int, socket.socket] = {}  # by process id of the rank
    print("ready", flush=True)
    while True:
        ready, *_ = select.select([0, listener, wake, *clients.values()], [], [])
        if 0 in ready:
            break
        if wake in ready:
            os.read(wake, 4096)
            reap(clients)
        if listener in ready:
            start(listener, clients, shim)
        for pid, client in list(clients.items()):
            if client in ready and not client.recv(1):  # killed by mpirun, so its rank dies too
                os.kill(pid, signal.SIGKILL)
                clients.pop(pid).close()
    for pid in clients:
        os.kill(pid, signal.SIGKILL)


def reap(clients: dict[int, socket.socket]) -> None:
    """Tell clients how their ranks ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        client = clients.pop(pid, None)
        if client is not None:
            with contextlib.suppress(OSError):  # the client is gone
                client.sendall(f"{status}\n".encode())
            client.close()


def start(listener: socket.socket, clients: dict[int, socket.socket], shim: str) -> None:
    """Fork a rank for the client that waits."""
    client, _ = listener.accept()
    head, outputs, *_ = socket.recv_fds(client, 8, 2)
    data = b""
    while len(data) < int.from_bytes(head, "little"):
        data += client.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (outputs[0], 1), (outputs[1], 2)):
                os.dup2(descriptor, place)
            os.closerange(3, 256)
            request = json.loads(data)
            os.environ.clear()
            os.environ.update(request["environment"], LD_PRELOAD=shim)
            os.chdir(request["folder"])
            code = run_rank(ctypes.CDLL(shim), request["argv"])
            sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, SystemExit):
                code = error.code if isinstance(error.code, int) else 1
            else:
                traceback.print_exc()
        finally:
            os._exit(code)
    for descriptor in outputs:
        os.close(descriptor)
    clients[pid] = client
    client.sendall(f"{pid}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
