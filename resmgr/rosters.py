"""Users of other nodes by their names: this machine's list of accounts, told to nodes that ask, and what was learned of theirs.

A table of another node (number there to number here, of equal names) is asked for when it is first needed, counts for FRESH, is used for
OLD while a newer one is asked for, and is forgotten then. The request that needs the first one waits, as for an account of this machine
(`users.LookingUp`), at most PATIENCE, then ETIMEDOUT. A node that tells nothing has nobody.

Both lists are read in a thread, one of each at a time: a directory service may take its time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from resmgr.channel import CHID_ROSTER, ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Message
from resmgr.dispatch import Buffer, Timer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.owners import NOBODY, NOGROUP
from resmgr.roster import ENTRIES_MAX, PAGE_MAX, Entry, matched, pack_page, pack_question, parse_page, parse_question, read_entries
from resmgr.users import FarTable, LookingUp

log = logging.getLogger(__name__)
FRESH = 60.0
OLD = 600.0
AGAIN = 5.0
"""Seconds after which a number that is not in a table has it asked for anew: the account may be a new one."""
PATIENCE = 10.0
TOLD_FOR = 5.0
"""Seconds for which this machine's list is told without reading it again."""
WAITING_MAX = 256
"""Questions of other nodes that wait for the list; more are EAGAIN."""
_EMPTY = FarTable({}, {})
_WAY_LOST = frozenset((-errno.EHOSTDOWN, -errno.EHOSTUNREACH, -errno.EAGAIN, -errno.EINTR))


class _Far:
    """What is known of one node's accounts."""

    __slots__ = ("asked", "asked_at", "at", "connection", "ended", "entries", "table", "timer", "waiting")

    def __init__(self) -> None:
        self.table: FarTable | None = None
        self.at = 0.0
        """When the table was asked for."""
        self.asked = False
        self.asked_at = 0.0
        self.ended = -AGAIN
        """When the last question was answered, or was not."""
        self.entries: list[Entry] = []
        self.connection: Connection | None = None
        self.timer: Timer | None = None
        self.waiting: list[Callable[[], None]] = []


class Rosters:
    """Of one node. `tells`: whether others are told of this machine's accounts."""

    def __init__(self, kernel: Kernel, read: Callable[[], list[Entry]] = read_entries) -> None:
        self.tells = True
        self.counters = {"roster_asked": 0, "roster_refused": 0, "roster_bad": 0, "roster_late": 0, "roster_told": 0, "roster_full": 0}
        self._kernel = kernel
        self._dispatch = kernel.own_dispatch
        self._read = read
        self._far: dict[str, _Far] = {}
        self._own: list[Entry] | None = None
        self._own_at = 0.0
        self._reading: list[Callable[[list[Entry] | None], None]] = []
        self.channel = kernel.channel(self._receive, pid=PID_SYSTEM, chid=CHID_ROSTER)

    def close(self) -> None:
        for far in self._far.values():
            self._stop(far)
        self._far.clear()
        self.channel.destroy()

    # ---- this machine's

    def _receive(self, message: Message) -> None:
        try:
            index = parse_question(message.data)
        except BadMessage:
            self.counters["roster_bad"] += 1
            message.error(errno.EBADMSG)
            return
        if not self.tells or message.info.nd == ND_LOCAL:
            message.error(errno.EACCES)
            return
        if len(self._reading) >= WAITING_MAX:
            self.counters["roster_full"] += 1
            message.error(errno.EAGAIN)
            return

        def tell(entries: list[Entry] | None) -> None:
            if message.answered:
                return
            if entries is None:
                message.error(errno.EAGAIN)
                return
            self.counters["roster_told"] += 1
            status, data = pack_page(entries, index)
            message.reply(status, data)

        message.on_unblock = lambda: message.error(errno.EINTR)
        self._with_own(tell)

    def _with_own(self, then: Callable[[list[Entry] | None], None]) -> None:
        """Call *then* with this machine's list, or None if it could not be read."""
        if self._own is not None and self._dispatch.now() - self._own_at < TOLD_FOR:
            then(self._own)
            return
        self._reading.append(then)
        if len(self._reading) == 1:
            self._dispatch.call_blocking(self._read, self._own_read)

    def _own_read(self, result: list[Entry] | BaseException) -> None:
        if isinstance(result, BaseException):
            log.warning("this machine's accounts cannot be listed: %s", result)
        else:
            self._own, self._own_at = result, self._dispatch.now()
        waiting, self._reading = self._reading, []
        for then in waiting:
            then(None if isinstance(result, BaseException) else result)

    # ---- others'

    def table(self, node: str) -> FarTable:
        """What *node*'s numbers mean here. LookingUp: asked for; `ResmgrError` EHOSTDOWN, ETIMEDOUT: it cannot be known now."""
        far = self._far.setdefault(node, _Far())
        now = self._dispatch.now()
        table = far.table
        if table is not None and now - far.at < FRESH:
            return table
        self._ask(node, far)
        table = far.table
        if table is not None and now - far.at < OLD:
            return table
        if far.asked:
            raise LookingUp(far.waiting)
        code = errno.EHOSTDOWN if self._kernel.node_by_name(node) is None else errno.ETIMEDOUT
        raise ResmgrError(code, f"node {node} does not say what its users are called")

    def again(self, node: str) -> None:
        """Somebody of *node* is not in its table: LookingUp if it is asked for anew."""
        far = self._far.get(node)
        if far is None:
            return
        self._ask(node, far)
        if far.asked:
            raise LookingUp(far.waiting)

    def _ask(self, node: str, far: _Far) -> None:
        """Unless it is being asked, or was a moment ago."""
        nd = self._kernel.node_by_name(node)
        now = self._dispatch.now()
        if nd is None or far.asked or now - far.ended < AGAIN:
            return
        far.asked_at = now
        self.counters["roster_asked"] += 1
        far.asked = True
        far.entries = []
        far.connection = self._kernel.connect(nd, PID_SYSTEM, CHID_ROSTER, Credentials(NOBODY, NOGROUP, (), PID_SYSTEM))
        far.timer = self._dispatch.call_at(now + PATIENCE, lambda: self._late(far))
        self._page(node, far, 0)

    def _page(self, node: str, far: _Far, index: int) -> None:
        connection = far.connection
        assert connection is not None

        def came(status: int, data: Buffer) -> None:
            if far.connection is not connection:
                return
            if status < 0:
                if status not in _WAY_LOST:
                    self.counters["roster_refused"] += 1
                    self._learned(far, _EMPTY)
                self._done(far)
                return
            try:
                entries = parse_page(data)
            except BadMessage:
                self.counters["roster_bad"] += 1
                self._done(far)
                return
            far.entries += entries
            if 0 < status < ENTRIES_MAX and status == index + len(entries) and entries:
                self._page(node, far, status)
                return
            self._with_own(lambda ours: self._match(far, connection, ours))

        connection.submit((pack_question(index),), PAGE_MAX, came)

    def _match(self, far: _Far, connection: Connection, ours: list[Entry] | None) -> None:
        if far.connection is not connection:
            return
        if ours is not None:
            self._learned(far, FarTable(*matched(far.entries, ours)))
        self._done(far)

    def _learned(self, far: _Far, table: FarTable) -> None:
        far.table, far.at = table, far.asked_at

    def _late(self, far: _Far) -> None:
        self.counters["roster_late"] += 1
        self._done(far)

    def _stop(self, far: _Far) -> None:
        far.asked = False
        far.entries = []
        connection, far.connection = far.connection, None
        if far.timer is not None:
            far.timer.cancel()
            far.timer = None
        if connection is not None:
            connection.close()

    def _done(self, far: _Far) -> None:
        self._stop(far)
        far.ended = self._dispatch.now()
        waiting = far.waiting[:]
        far.waiting.clear()
        for call in waiting:
            call()
