"""Tell whoever started the daemon that it is ready: the protocol of sd_notify(3), which `qnet up` and systemd both speak."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> None:
    """Send *text* ("READY=1", "STATUS=...", "STOPPING=1") to the socket in $NOTIFY_SOCKET, if there is one; never blocks."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as handle:
        try:
            handle.sendto(text.encode(), address)
        except OSError:
            # The starter is gone; that is its business.
            return
