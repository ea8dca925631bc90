"""An open directory: its entries as they came, and their positions.

Positions told to the kernel are numbers (0 `.`, 1 `..`, then the server's entries in the order in which they came first); the server's
cookie of each is kept, so that seekdir(3) and telldir(3) work for any cookies a manager may use. When entries are fetched again, after a
seek, an entry keeps the number that its cookie has; one that was not there before gets a new one. Position 0 asked for again is
rewinddir(3): the entries are fetched anew.

All who have a directory open share its numbers, and so does who opens it while the kernel keeps its listing: the kernel answers each of
them from what one has read. It would also look there for positions of a listing that is not that one any more, and find nothing; so it may
not keep one whose numbers are not those that others were told.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.fuse.forgotten import Forgotten
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.inode import Node
from resmgr.fuse.listed import Record
from resmgr.fuse.request import Request
from resmgr.iomsg import ATTR, COOKIE_END, DIRENT, NAME_MAX

POSITIONS_MAX: Final = 1 << 20
"""Positions that are kept over a rewinddir(3), and how many new ones what is fetched again may get between two."""

Item = tuple[bytes, int, int, AttrTuple | None]
"""One entry as the server told it: name, inode number, mode, attributes."""


class Directory:
    """An open directory: the chunk of entries at hand, the cookies of all that passed, and a fetch that may be under way."""

    __slots__ = (
        "anew",
        "at",
        "began",
        "cached",
        "connection",
        "cookies",
        "end",
        "fetching",
        "fh",
        "forgotten",
        "home",
        "items",
        "node",
        "numbers",
        "ocb",
        "pid",
        "plain",
        "raw",
        "record",
        "rewinds",
        "served",
        "start",
        "waiting",
        "with_attrs",
    )

    def __init__(self, fh: int, node: Node, connection: Connection, ocb: int, record: Record, pid: int) -> None:
        self.fh = fh
        self.pid = pid
        """The thread that opened it."""
        self.node = node
        self.connection = connection
        self.ocb = ocb
        self.record = record
        """Knows what was changed from here since a chunk was asked for."""
        self.at = 0.0
        """When the chunk at hand was asked for."""
        self.began = 0.0
        """When the first chunk was."""
        self.cached = False
        """The kernel keeps what it reads of it."""
        self.raw: Buffer = b""
        """Its bytes, if they have attributes that neither the kernel nor the read-ahead was told."""
        self.items: list[Item] = []
        self.start = 0
        """The position that leads to items[0]: 0, or one more than the number of the entry before."""
        self.numbers: Sequence[int] = range(0)
        """Numbers of `items`."""
        self.served = False
        """Position 0 was asked for."""
        self.cookies = array("Q")
        """cookies[i] leads to the entry after entry i. Others may have the same array; what stands in it stays."""
        self.anew = 0
        """New numbers given to what was fetched again."""
        self.plain = True
        """Since position 0, entries had the numbers 0, 1, 2, ..."""
        self.end = -1
        """The position behind the last entry, once known."""
        self.with_attrs = True
        self.forgotten: Forgotten | None = None
        """How often in a row its server did not know the OCB."""
        self.fetching = -1
        """Index that is being fetched; -1: none."""
        self.home = False
        """Opened without the server: the OCB is got when it is needed, and positions in the kernel's cached listing are found again."""
        self.waiting: list[tuple[Request, int, int, bool]] = []
        """READDIRs to be served when the fetch has come: request, index, size, with entries."""
        self.rewinds = 0

    def rewind(self) -> None:
        """Nothing is known of the entries, and what is on the way is not taken. Positions stay good, unless there are too many."""
        self.rewinds += 1
        self.anew = 0
        self.fetching = -1
        self.items = []
        self.numbers = range(0)
        self.start = 0
        self.end = -1
        self.raw = b""
        if len(self.cookies) > POSITIONS_MAX:
            self.cookies = array("Q")

    def arrived(self, index: int, with_attrs: bool, reply: Buffer, at: float) -> None:
        """The chunk from position *index* on is there, asked for at *at*; it is the one at hand from now on. Raises `BadMessage`."""
        cookies, items = parse_entries(reply, with_attrs)
        self.at = at
        if index == 0:
            self.began = at
            self.plain = True
        self.raw = reply if with_attrs else b""
        self.items = items
        self.start = index
        self.with_attrs = with_attrs
        self.numbers = numbers = self._numbered(index, cookies)
        if not isinstance(numbers, range):
            self.plain = False
        if not items:
            self.end = index
        elif cookies[-1] == COOKIE_END:
            self.end = self.numbers[-1] + 1

    def _numbered(self, index: int, cookies: list[int]) -> Sequence[int]:
        """Numbers of the entries that come at position *index*: those that their cookies have, else new ones."""
        known = self.cookies
        total = len(known)
        if index >= total:
            known.extend(cookies)
            return range(index, index + len(cookies))
        if known[index : index + len(cookies)] == array("Q", cookies):
            return range(index, index + len(cookies))
        if index == 0 and total > POSITIONS_MAX:
            self.cookies = array("Q", cookies)
            return range(len(cookies))
        places = {cookie: index + place for place, cookie in enumerate(known[index : index + 4 * len(cookies)])}
        numbers: list[int] = []
        for cookie in cookies:
            number = places.get(cookie)
            if number is None:
                number = len(known)
                known.append(cookie)
                self.anew += 1
            numbers.append(number)
        if self.anew > POSITIONS_MAX:
            raise BadMessage("more positions than there are entries")
        return numbers

    def ended(self, index: int) -> bool:
        """Whether nothing comes at position *index*."""
        if index == self.end or (self.home and 0 <= self.end < index):
            return True
        return 0 < index <= len(self.cookies) and self.cookies[index - 1] == COOKIE_END

    def place(self, index: int) -> int:
        """Which of the items at hand comes at position *index*; -1: none of them."""
        numbers = self.numbers
        if index == self.start:
            return 0
        if isinstance(numbers, range):
            return index - self.start
        try:
            return numbers.index(index - 1) + 1
        except ValueError:
            return -1


def parse_entries(reply: Buffer, with_attrs: bool) -> tuple[list[int], list[Item]]:
    """Cookies and entries of a READDIR reply, without `.` and `..`, should a server send them."""
    cookies: list[int] = []
    items: list[Item] = []
    view = memoryview(reply)
    offset, end = 0, len(view)
    head_of, attr_of, head_size, attr_size = DIRENT.unpack_from, ATTR.unpack_from, DIRENT.size, ATTR.size
    attr: AttrTuple | None = None
    try:
        while offset < end:
            ino, cookie, mode, length = head_of(view, offset)
            offset += head_size
            name = bytes(view[offset : offset + length])
            offset += length
            if with_attrs:
                attr = attr_of(view, offset)
                offset += attr_size
                if not attr[1]:
                    attr = None
            if len(name) != length or not 0 < length <= NAME_MAX or name.find(b"/") >= 0 or name.find(b"\0") >= 0:
                raise BadMessage("directory entry's name")
            if length < 3 and (name == b"." or name == b".."):
                # Its cookie still counts: the entry before leads past it.
                if cookies:
                    cookies[-1] = cookie
                continue
            cookies.append(cookie)
            items.append((name, ino, mode, attr))
    except struct.error:
        raise BadMessage("directory entry cut short") from None
    return cookies, items
