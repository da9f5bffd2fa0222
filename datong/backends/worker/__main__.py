"""`python -m datong.backends.worker FD`: serve on the socket that the parent left open at this number."""

from __future__ import annotations

import os
import signal
import socket
import sys

from datong.backends.worker.serve import serve


def main() -> None:
    """Ctrl-C is for the parent: it goes to every process of the terminal, and the parent decides what ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
    # The parent is gone or wants us gone: the memory goes back faster without the interpreter's own farewell.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


main()
