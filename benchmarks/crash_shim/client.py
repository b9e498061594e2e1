"""What mpirun starts in the place of a rank: hands its environment and outputs to the fork server, and dies as the rank dies.

Run with `python -IS`; it imports next to nothing, so that a trial does not wait for it.
"""

import json
import os
import signal
import socket
import sys


def main(address: str, argv: list[str]) -> int:
    """Have the server fork a rank, and return its exit code."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.connect(address)
    request = json.dumps({"argv": argv, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "little")], [1, 2])
    server.sendall(request)
    with server.makefile("r") as answers:
        pid = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        status = int(answers.readline() or signal.SIGKILL)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
