"""What was read ahead of one directory, as one user sees it (`ahead`): entries with attributes as they came, and what speaks against them.

The entries stay packed. Where each name's attributes lie is found once, when they come; they are unpacked when somebody asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.formats import AttrTuple
from resmgr.iomsg import ATTR, DIRENT, NAME_MAX

if TYPE_CHECKING:
    from resmgr.fuse.changes import Logs
    from resmgr.fuse.inode import Node
    from resmgr.fuse.servers import User

FIRST: Final = 16 * 1024
"""Bytes of entries asked for first: about 140. The server's work for them is that of two messages."""
NEED_FIRST: Final = 2
"""Lookups that had to ask the server before something is read ahead."""
ENTRY_COST: Final = 160
"""Bytes that an entry costs beside its own."""

_attr_of: Final = ATTR.unpack_from
_DIRENT_SIZE: Final = DIRENT.size
_ATTR_SIZE: Final = ATTR.size
_MODE_AT: Final = 8
_MODE: Final = struct.Struct("!I").unpack_from
_INO: Final = struct.Struct("!Q").unpack_from


class Chunk:
    """Entries of one reply: where in `data` each name's attributes are. `at` is when they were asked for, `last` the last cookie; `sure` is
    `at` as leases count, by which the answer that began one is known."""

    __slots__ = ("at", "cost", "data", "last", "offsets", "sure")

    def __init__(self, data: Buffer, at: float, sure: float = 0.0) -> None:
        """Raises `BadMessage` when *data* are not entries with attributes. They are kept, not copied."""
        self.data = data
        self.at = at
        self.sure = sure or at
        self.last = 0
        offsets: dict[bytes, int] = {}
        view = memoryview(data)
        offset, end = 0, len(view)
        try:
            while offset < end:
                _, self.last, _, length = DIRENT.unpack_from(view, offset)
                offset += _DIRENT_SIZE
                name = bytes(view[offset : offset + length])
                offset += length
                if not 0 < length <= NAME_MAX or offset + _ATTR_SIZE > end:
                    raise BadMessage("directory entry cut short")
                offsets[name] = -1 if name in offsets or not _MODE(view, offset + _MODE_AT)[0] else offset
                offset += _ATTR_SIZE
        except struct.error:
            raise BadMessage("directory entry cut short") from None
        self.offsets = offsets
        self.cost = end + len(offsets) * ENTRY_COST

    def numbers(self) -> Iterator[tuple[bytes, int]]:
        """Names and inode numbers, in the order in which they came; not of those without attributes."""
        for name, offset in self.offsets.items():
            if offset >= 0:
                yield name, _INO(self.data, offset)[0]


class Record:
    """One directory as one user sees it."""

    __slots__ = (
        "asked",
        "asking",
        "chunks",
        "connection",
        "cookie",
        "cost",
        "dropped",
        "entries",
        "hits",
        "misses",
        "need",
        "node",
        "ocb",
        "since",
        "size",
        "user",
        "whole",
    )

    def __init__(self, node: Node, connection: Connection, user: User, now: float) -> None:
        self.node = node
        self.connection = connection
        self.user = user
        self.misses = 0
        """LOOKUPs that the server had to answer, since `since` or since something came."""
        self.since = now
        self.need = NEED_FIRST
        self.size = FIRST
        """Bytes to ask for next."""
        self.hits = 0
        """LOOKUPs that were answered from `chunks`."""
        self.chunks: list[Chunk] = []
        """The newest first: a name may be in several."""
        self.entries = 0
        self.cost = 0
        self.dropped = False
        """Nothing more is learned, and nothing believed that was asked for it."""
        self.asking = False
        self.asked = False
        """Some of `chunks` were asked for here."""
        self.ocb = 0
        """The directory, open for more entries; 0: not open."""
        self.cookie = 0
        self.whole = False
        """The last entry has come: there is nothing more to ask for."""

    def find(self, name: bytes, oldest: float, logs: Logs) -> tuple[AttrTuple, float, float] | None:
        """Attributes of *name* and when they were asked for, which is later than *oldest* and than any change; the last as `Chunk.sure`."""
        for chunk in self.chunks:
            offset = chunk.offsets.get(name)
            if offset is None:
                continue
            if offset < 0 or chunk.at <= oldest or logs.since(self.node, name, chunk.at):
                return None
            attr: AttrTuple = _attr_of(chunk.data, offset)
            if attr[2] > 1 and S_IFMT(attr[1]) == S_IFREG:
                return None
            return attr, chunk.at, chunk.sure
        return None
