"""Attributes read ahead: what LOOKUPs in a directory will ask is fetched with one message (docs/decisions/fuse-attribute-read-ahead.md).

A round trip to another node costs many times what the kernel's question and its answer cost here. When lookups in one directory follow each
other, the directory is opened with a prefetch, as OPENDIR does it: the reply brings the first entries with their attributes, and further
LOOKUPs are answered from them. More is asked for while it is used, twice as much each time. What READDIR brings is kept the same way.

What is kept is never believed for longer than the kernel may believe it. The age counts from when the message was *sent*, and the kernel
is told what is left of the validity. So a name or attribute is as old at most as without read-ahead.

Kept entries belong to one directory and one connection, that is, one user at one server. They are asked for only after lookups of that user
in the directory found something, so who may search it is decided by the server. Not believed, so the server is asked:

- what was changed since the message was sent (`changes`), as far as that is known, also while the change is on the way;
- regular files with several links: another name may have changed them;
- entries without attributes (another manager's), names told twice;
- that a name does not exist: a listing need not tell every name that can be looked up (other case, automatic mounts, threads in /proc).
"""

from __future__ import annotations

import math
from os import O_DIRECTORY
from typing import TYPE_CHECKING, Final

from resmgr.channel import Connection
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import BadMessage
from resmgr.fuse.formats import AttrTuple
from resmgr.fuse.listed import FIRST, NEED_FIRST, Chunk, Record
from resmgr.fuse.request import STALE
from resmgr.fuse.walk import CONNECT, ENTRY_MAX
from resmgr.iomsg import COOKIE_END, OPEN, OPEN_WATCH, READDIR, READDIR_ATTRS, REQUEST, Connect, Io

if TYPE_CHECKING:
    from resmgr.fuse.core import Core
    from resmgr.fuse.inode import Node
    from resmgr.fuse.request import Request
    from resmgr.fuse.servers import User

LARGEST: Final = 128 * 1024
"""Bytes of entries asked for at once: more holds up other messages of the server's node for milliseconds."""
NEED_MAX: Final = 64
"""Lookups that had to ask the server before something is read ahead, at most; doubled whenever what was read ahead was of no use."""
USEFUL: Final = 32
"""Reading ahead was of use if one of so many entries was asked for: an entry costs both nodes about a 64th of a message."""
DIRECTORY_MAX: Final = 512 * 1024
"""Bytes kept of one directory as one user sees it. Stops a server that lists without end."""
TOTAL_MAX = 8 * 1024 * 1024
"""Bytes kept in all; the oldest directories go. Stops many large directories from filling memory together."""
RECORDS_MAX = 4096
"""Directories, each for one user, whose lookups are counted; the first go. Stops a walk over a large tree from filling memory."""


class ReadAhead:
    """Everything read ahead in one mount. Counts in `Core.drops`: `ahead_asked`, `ahead_hits`, `ahead_refused`, `ahead_evicted`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._valid = min(core.options.attr_valid, core.options.entry_valid)
        self._limit = min(core.options.attributes_ahead, DIRECTORY_MAX)
        self._records: dict[Record, None] = {}
        """In the order in which they were made."""
        self.cost = 0
        """Bytes kept, with ENTRY_COST for each entry."""
        self._timer: Timer | None = None

    def __len__(self) -> int:
        """Directories, each for one user, that something is known of."""
        return len(self._records)

    # ---- asked by the operations

    def find(self, request: Request) -> tuple[AttrTuple, float, float] | None:
        """What is known of the request's name in its directory (`Record.find`); None: the server has to be asked."""
        node = request.node
        if not node.ahead:
            return None
        connection = node.server.connections.get(request.user)
        record = None if connection is None else node.ahead.get(connection)
        if record is None or not record.chunks:
            return None
        found = record.find(request.name, request.at - self._valid, self._core.logs)
        if found is not None:
            record.hits += 1
        return found

    def looked_up(self, request: Request) -> None:
        """The server found the name of a LOOKUP in the request's directory: perhaps more will be asked there."""
        node = request.node
        connection = request.connection
        if (node.parent is None and not node.above) or request.base is not node or self._limit <= 0 or self._valid <= 0:
            # In the mount's root lie other managers, and a redirect leads away.
            return
        now = self._core.dispatch.now()
        record = self.record(node, connection, request.user)
        self._expire(record, now)
        if now - record.since > self._valid:
            record.misses = 0
            record.since = now
        record.misses += 1
        if (record.misses >= record.need or 0 < record.entries <= record.hits * 2) and not record.asking and not record.whole:
            self._ask(record, now)

    def learn(self, record: Record, data: Buffer, at: float) -> None:
        """A READDIR sent at *at* brought *data*, entries with attributes, of which the kernel was told only the names."""
        if record.node.parent is not None and len(data) <= self._limit and self._core.dispatch.now() - at < self._valid:
            self._keep(record, Chunk(data, at))

    # ---- what is not to be believed

    def forget_node(self, node: Node) -> None:
        """Drop everything kept of directory *node*; what is on the way is not believed either."""
        if node.ahead:
            for record in list(node.ahead.values()):
                self._drop(record)

    def forget_user(self, node: Node, connection: Connection) -> None:
        """The server refused this user something in *node*."""
        record = node.ahead.get(connection) if node.ahead else None
        if record is not None:
            self._drop(record)

    def forget_connection(self, connection: Connection) -> None:
        """The server behind *connection* is not there any more."""
        for record in [record for record in self._records if record.connection is connection]:
            self._drop(record)

    def close(self) -> None:
        """The mount is gone. Idempotent."""
        for record in list(self._records):
            self._drop(record)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- records

    def record(self, node: Node, connection: Connection, user: User) -> Record:
        """The record of a directory and user, made if there is none."""
        if node.ahead is None:
            node.ahead = {}
        record = node.ahead.get(connection)
        if record is None:
            record = node.ahead[connection] = Record(node, connection, user, self._core.dispatch.now())
            self._records[record] = None
            if len(self._records) > RECORDS_MAX:
                self._core.drops["ahead_evicted"] += 1
                self._drop(next(iter(self._records)))
        return record

    def _drop(self, record: Record) -> None:
        if record not in self._records:
            return
        del self._records[record]
        self._clear(record)
        record.dropped = True
        ahead = record.node.ahead
        if ahead is not None:
            if ahead.get(record.connection) is record:
                del ahead[record.connection]
            if not ahead:
                record.node.ahead = None

    def _clear(self, record: Record) -> None:
        record.chunks = []
        self._restart(record)

    def _restart(self, record: Record) -> None:
        """Chunks were taken away: what the others cost, and the next message begins with the first entry again."""
        self._count(record)
        record.whole = False
        self._close(record)

    def _count(self, record: Record) -> None:
        record.entries = sum(len(chunk.offsets) for chunk in record.chunks)
        cost = sum(chunk.cost for chunk in record.chunks)
        self.cost += cost - record.cost
        record.cost = cost

    def _close(self, record: Record) -> None:
        if record.ocb:
            self._core.handles.close_lazily(record.connection, record.ocb)
            record.ocb = 0

    def _expire(self, record: Record, now: float) -> None:
        """Drop what is too old, and when nothing is left decide when to ask next, and for how much."""
        chunks = record.chunks
        if not chunks or now - chunks[-1].at <= self._valid:
            return
        entries = record.entries
        record.chunks = [chunk for chunk in chunks if now - chunk.at <= self._valid]
        self._restart(record)
        if record.chunks:
            return
        record.misses = 0
        record.since = now
        if record.hits >= NEED_FIRST and record.hits * USEFUL >= entries:
            # It was of use: all of it again, as soon as somebody asks.
            record.need = 1
            record.size = max(sum(len(chunk.data) for chunk in chunks), FIRST)
        elif record.asked:
            record.need = min(max(record.need, NEED_FIRST) * 2, NEED_MAX)
            record.size = FIRST
        record.hits = 0
        record.asked = False

    def _keep(self, record: Record, chunk: Chunk) -> None:
        core = self._core
        now = core.dispatch.now()
        if record.dropped or now - chunk.at > self._valid:
            return
        self._expire(record, now)
        chunks = record.chunks
        held = sum(len(other.data) for other in chunks) + len(chunk.data)
        while chunks and held > self._limit:
            held -= len(chunks.pop().data)
        chunks.append(chunk)
        chunks.sort(key=_age, reverse=True)
        self._count(record)
        while self.cost > TOTAL_MAX:
            oldest = next((other for other in self._records if other.chunks and other is not record), record)
            core.drops["ahead_evicted"] += 1
            self._clear(oldest)
        if self._timer is None:
            self._timer = core.dispatch.call_at(now + self._valid, self._sweep)

    def _sweep(self) -> None:
        """Memory and open directories are given back although nobody asks."""
        self._timer = None
        now = self._core.dispatch.now()
        busy = False
        for record in self._records:
            self._expire(record, now)
            if record.chunks:
                busy = True
        if busy:
            self._timer = self._core.dispatch.call_at(now + self._valid, self._sweep)

    # ---- messages

    def _ask(self, record: Record, now: float) -> None:
        core = self._core
        size = min(record.size, LARGEST, self._limit)
        if record.ocb:
            message = REQUEST.pack(Io.READDIR, 0, READDIR_ATTRS, record.ocb) + READDIR.pack(record.cookie, size)
            reply_len = size
        else:
            handle = record.node.handles.get(record.connection)
            if handle is None or record.connection.closed:
                return
            flags = O_DIRECTORY
            if core.leases.wanted(record.node):
                flags |= OPEN_WATCH
            message = REQUEST.pack(CONNECT, Connect.OPEN, flags, handle) + OPEN.pack(0, 0, size)
            reply_len = ENTRY_MAX + size
        opening = not record.ocb
        record.asking = record.asked = True
        record.misses = 0
        core.drops["ahead_asked"] += 1

        def done(status: int, reply: Buffer) -> None:
            record.asking = False
            try:
                if status:
                    self._refused(record, status)
                elif opening:
                    self._opened(record, reply, size, now)
                else:
                    self._came(record, reply, size, now)
            except BadMessage:
                core.drops["bad_reply"] += 1
                self._refused(record, 0)

        record.connection.submit((message,), reply_len, done)

    def _refused(self, record: Record, status: int) -> None:
        """It cannot be listed by this user, or the server is gone: asked again when many more lookups came."""
        self._core.drops["ahead_refused"] += 1
        if status in STALE:
            self._drop(record)
        else:
            self._clear(record)
            record.need = NEED_MAX

    def _opened(self, record: Record, reply: Buffer, size: int, at: float) -> None:
        core = self._core
        found = core.parse_entry(record.connection, record.user, reply)
        usable = (
            found.connection is record.connection
            and found.attr is not None
            and found.attr[0] == record.node.ino
            and record in self._records
            and bool(len(found.data))
        )
        sure = at
        if found.attr is not None:
            if found.watched:
                if usable:
                    # No other request has this time: what came belongs to the lease that it begins.
                    sure = math.nextafter(at, math.inf)
                    core.leases.began(record.node, record.connection, sure, True)
                else:
                    core.leases.refused(found.connection, found.attr[0])
            if found.handle and found.handle != found.ocb:
                core.handles.close_later(found.connection, found.handle)
            if not usable or record.ocb:
                core.handles.close_lazily(found.connection, found.ocb)
            else:
                record.ocb = found.ocb
        if usable:
            self._came(record, found.data, size, at, sure)
        else:
            self._refused(record, 0)

    def _came(self, record: Record, data: Buffer, size: int, at: float, sure: float = 0.0) -> None:
        if len(data) > size:
            raise BadMessage("more entries than asked for")
        if not len(data):
            record.whole = bool(record.chunks)
            self._close(record)
            return
        chunk = Chunk(bytes(data), at, sure)
        record.cookie = chunk.last
        self._keep(record, chunk)
        if not record.chunks:
            # It took so long that it is not to be believed any more, or there was no room.
            self._restart(record)
            return
        held = sum(len(kept.data) for kept in record.chunks)
        if chunk.last == COOKIE_END or held >= self._limit:
            record.whole = True
            self._close(record)
        record.size = min(size * 2, LARGEST, max(self._limit - held, FIRST))
        record.need = min(NEED_FIRST << len(record.chunks), NEED_MAX)


def _age(chunk: Chunk) -> float:
    return chunk.at
