"""Questions and requests to rtnetlink(7) on a socket that the caller has: it belongs to the network namespace in which it was made.

The kernel answers at once, so these work on blocking and non-blocking sockets alike.
"""

from __future__ import annotations

import errno
import os
import socket

from stack.wire.rtnetlink import Link, Refused, get_link, parse_messages

RECEIVE_MAX = 1 << 16


def find_link(sock: socket.socket, name: str) -> Link | None:
    """The interface called *name*; None when there is none."""
    sock.send(get_link(name))
    while True:
        for message in parse_messages(sock.recv(RECEIVE_MAX)):
            if isinstance(message, Link) and message.name == name:
                return message
            if isinstance(message, Refused):
                return None


def ask(sock: socket.socket, request: bytes) -> None:
    """A request that is acknowledged. OSError when the kernel refuses it."""
    sock.send(request)
    while True:
        for message in parse_messages(sock.recv(RECEIVE_MAX)):
            if isinstance(message, Refused):
                if message.code:
                    raise OSError(message.code, os.strerror(message.code))
                return


def tx_dropped(index: int) -> int:
    """How many frames Linux dropped that should have left through that interface of the thread's network namespace, whoever sent them.
    OSError when it does not tell, ENODEV when there is none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(get_link(index=index))
        for message in parse_messages(sock.recv(RECEIVE_MAX)):
            if isinstance(message, Link) and message.index == index:
                return message.tx_dropped
    raise OSError(errno.ENODEV, "there is no such interface")
