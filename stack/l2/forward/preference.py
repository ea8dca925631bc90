"""Which engine is best for which ports: `auto`."""

from __future__ import annotations

from stack.core.linuxinterface import LinuxInterface
from stack.linux.ethtool import linux_driver
from stack.linux.namespace import inside

BUFFERED = frozenset(("veth", "tun", "bridge", "bonding"))
"""Drivers whose frames are socket buffers of local senders anyway, with much beside them that no XDP program sees: the rest of a partial
checksum, a VLAN tag, the lengths of a run of segments that is yet to be cut."""


def is_buffered(linux: LinuxInterface) -> bool:
    """OSError when its namespace cannot be entered."""
    with inside(linux.namespace):
        return linux_driver(linux.name) in BUFFERED


def preferred(linux: LinuxInterface) -> tuple[str, ...]:
    """Engines by name, best first. Threads carry a run of 64 KiB in one piece, where the kernel engine leaves it to the stack to cut."""
    return ("threads", "kernel") if is_buffered(linux) else ("kernel", "threads")
