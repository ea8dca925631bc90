"""Where an instance of io-pkt keeps its lock and its local socket, unless its command line says otherwise."""

from __future__ import annotations

import os

SOCKET = "socket"
"""Name of the local socket in the run directory."""


def default_run_dir(instance: int) -> str:
    """`/run/io-pktN` for root; under $XDG_RUNTIME_DIR, or /tmp with the user's number, for others."""
    if os.geteuid() == 0:
        return f"/run/io-pkt{instance}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/io-pkt{instance}" if runtime else f"/tmp/io-pkt{instance}-{os.geteuid()}"
