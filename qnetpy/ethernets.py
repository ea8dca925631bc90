"""Which Ethernet interfaces a node uses when nobody names them: `[qnet] interfaces` left empty."""

from __future__ import annotations

from stack.linux.interfaces import Rtnetlink
from stack.wire.rtnetlink import ARPHRD_ETHER

NONE = "no Ethernet interface is up"
HINT = "ip link set IF up, or [qnet] interfaces in the configuration"


def ethernets() -> list[str]:
    """Ethernet interfaces of this network namespace that are up and not part of a bridge or bond, by name. Asks the kernel; OSError."""
    with Rtnetlink() as kernel:
        return sorted(link.name for link in kernel.links() if link.kind == ARPHRD_ETHER and link.enabled and not link.master)
