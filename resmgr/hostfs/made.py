"""What an operation on the host file system has made or opened, on its way to the client."""

from __future__ import annotations

from resmgr.hostfs.objects import HostHandle


class Opened:
    """What an operation made: to be registered and told to the client, or to be discarded."""

    __slots__ = ("attr", "data", "delegated", "empty", "node", "ocb", "watched")

    def __init__(
        self, attr: bytes, node: HostHandle | None, ocb: HostHandle | None, data: bytes | bytearray = b"", watched: bool = False
    ) -> None:
        self.attr = attr
        self.node = node
        self.ocb = ocb
        self.data = data
        self.watched = watched
        self.empty = False
        """`Entry.empty`."""
        self.delegated = False

    def discard(self) -> None:
        for handle in (self.node, self.ocb):
            if handle is not None:
                handle.close()
