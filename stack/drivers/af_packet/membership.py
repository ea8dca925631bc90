"""What a packet socket wants of its interface besides its own frames: groups, and those for other stations. The kernel tells the card, for
as long as the socket is there; with the interface the memberships go.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

from stack.linux.constants import (
    PACKET_ADD_MEMBERSHIP,
    PACKET_DROP_MEMBERSHIP,
    PACKET_MR_MULTICAST,
    PACKET_MR_PROMISC,
    PACKET_MREQ,
    SOL_PACKET,
)


class Membership:
    """Of *sock*, which stays the driver's. `others` and `groups` are what is wanted, `join` tells the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.others = False
        self.groups: frozenset[bytes] = frozenset()
        self._asked: tuple[int, frozenset[tuple[int, bytes]]] = 0, frozenset()
        """Index of a Linux interface, and what was asked of it."""

    def join(self, index: int | None, others: bool, groups: frozenset[bytes]) -> None:
        """Want that from now on; *index*: of the interface that the socket is bound to, None while there is none to ask. With OSError
        everything is as it was."""
        if index is not None:
            wanted = {(PACKET_MR_MULTICAST, group) for group in groups}
            if others:
                wanted.add((PACKET_MR_PROMISC, b""))
            before, members = self._asked
            if before != index:
                members = frozenset()  # they went with the interface
            self._tell(index, PACKET_ADD_MEMBERSHIP, wanted - members)
            try:
                self._tell(index, PACKET_DROP_MEMBERSHIP, members - wanted)
            except OSError:
                with contextlib.suppress(OSError):
                    self._tell(index, PACKET_DROP_MEMBERSHIP, wanted - members)
                raise
            self._asked = index, frozenset(wanted)
        self.others, self.groups = others, groups

    def _tell(self, index: int, how: int, kinds: Collection[tuple[int, bytes]]) -> None:
        """All of *kinds*, or, with OSError, none."""
        done: list[bytes] = []
        for kind, address in kinds:
            asked = PACKET_MREQ.pack(index, kind, len(address), address)
            try:
                self._sock.setsockopt(SOL_PACKET, how, asked)
            except OSError:
                undo = PACKET_DROP_MEMBERSHIP if how == PACKET_ADD_MEMBERSHIP else PACKET_ADD_MEMBERSHIP
                for one in done:
                    with contextlib.suppress(OSError):
                        self._sock.setsockopt(SOL_PACKET, undo, one)
                raise
            done.append(asked)
