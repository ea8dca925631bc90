"""What the link machine is told and tells: its timers, and the calls to its owner."""

from __future__ import annotations

from typing import Protocol

import attrs

from qnetpy.link.link import Link
from qnetpy.link.outcome import Failed
from qnetpy.link.wire import Address
from resmgr.dispatch import Buffer


@attrs.frozen
class LinkTimers:
    """Seconds; docs/protocol/node.md."""

    heartbeat: float = 0.3
    suspect_after: float = 1.0
    down_after: float = 3.0


class Upcalls(Protocol):
    """What the machine tells its owner."""

    def link_up(self, link: Link, restarted: bool) -> None: ...

    def link_suspect(self, link: Link, reason: str) -> None: ...

    def link_back(self, link: Link) -> None: ...

    def link_down(self, link: Link, reason: str) -> None: ...

    def path_changed(self, link: Link, address: Address, what: str) -> None:
        """A path of the link is there, works no more, works again, or is gone: *what* is a sentence's end for people."""
        ...

    def calling(self, name: str) -> None:
        """A node that is down was heard of again and is being called."""
        ...

    def unreachable(self, name: str, why: str) -> None:
        """A call to a node that is down came to nothing."""
        ...

    def message(self, link: Link, stream: int, priority: int, data: Buffer, route: int) -> None:
        """A whole message; *route* makes an answer go the way that it came (0: as the node's policy says)."""
        ...

    def solicited(self, address: Address, frame: memoryview) -> None:
        """A SOLICITATION came from *address*, which is not looked at yet. The frame, without Ethernet header, is not kept."""
        ...

    def refused(self, failed: Failed) -> None:
        """A handshake failed for a reason that people should hear of; once per address and reason."""
        ...
