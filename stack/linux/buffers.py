"""How much may wait in a socket: socket(7)."""

from __future__ import annotations

import socket

from stack.linux.constants import SO_RCVBUFFORCE, SO_SNDBUFFORCE


def widen(sock: socket.socket, which: int, size: int) -> None:
    """Room for *size* bytes in a socket's queue, or as much as there is a right to (rmem_max, wmem_max). *which*: SO_RCVBUF, SO_SNDBUF."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE if which == socket.SO_RCVBUF else SO_SNDBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, which, size)
