"""Subscriptions, the daemon's side: who watches, what waits for each, READs that wait, pulses. docs/protocol/names.md.

`EventQueue` is one subscriber's: a snapshot of what there is, taken when it is first read, then changes in order. It holds references to
records, not bytes, so a snapshot costs a pointer for each record, and a slow subscriber QUEUE_MAX changes. At that bound everything is
dropped and the next read begins with "overflow" and a new snapshot.

`Watches` keeps the queues of one channel by connection, so a subscription ends with it.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from resmgr.channel import ND_LOCAL, Connection, Kernel, Message
from resmgr.dispatch import Timer
from resmgr.ids import PULSE_CODE_MAX
from resmgr.subscription import LENGTH, NOWAIT

R = TypeVar("R")

QUEUE_MAX = 1024
"""Changes that wait for one subscriber. Stops one that does not read from taking the daemon's memory."""
WATCHES_MAX = 1024
WATCHES_PER_USER = 64
"""Stops a user, root excepted, from making each change cost the daemon without end."""
NOTIFY_AGAIN = 0.1
"""Seconds after which a pulse that the other side could not take is sent again."""


class EventQueue(Generic[R]):
    """What waits for one subscriber. *everything*: the records of now, each told as *present* says. *wants*: which records he asked for.

    *pack* makes an event of a kind and a record; None for the two kinds that have no record, *current* and *overflow*.
    """

    def __init__(
        self,
        everything: Callable[[], Iterable[R]],
        present: Callable[[R], int],
        wants: Callable[[R], bool],
        pack: Callable[[int, R | None], bytes],
        current: int,
        overflow: int,
    ) -> None:
        self._everything = everything
        self._present = present
        self.wants = wants
        self._pack = pack
        self._current = current
        self._overflow = overflow
        self._fresh = True
        """The next read begins with a snapshot, so no change has to be kept."""
        self._lost = False
        self._snapshot: list[R] = []
        self._place = 0
        self._waiting: deque[tuple[int, R | None]] = deque()
        """Behind the snapshot; CURRENT ends it."""
        self.overflows = 0

    def __bool__(self) -> bool:
        """Whether there is something to read."""
        return self._fresh or bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, kind: int, record: R) -> None:
        """Something changed."""
        if self._fresh or not self.wants(record):
            return
        if len(self._waiting) > QUEUE_MAX:
            self._snapshot, self._place = [], 0
            self._waiting.clear()
            self._fresh = self._lost = True
            self.overflows += 1
            return
        self._waiting.append((kind, record))

    def first(self) -> tuple[int, R | None]:
        """Kind and record of the next event, of which there is one."""
        if self._lost:
            return self._overflow, None
        if self._fresh:
            record = next((one for one in self._everything() if self.wants(one)), None)
            return (self._current, None) if record is None else (self._present(record), record)
        if self._place < len(self._snapshot):
            record = self._snapshot[self._place]
            return self._present(record), record
        return self._waiting[0]

    def take(self, size: int) -> tuple[int, bytes]:
        """How many events, and the events, as many as fit *size* bytes. None at all means that not one fits."""
        parts: list[bytes] = []
        count = 0
        if self._lost:
            count, size = self._put(parts, count, size, self._overflow, None)
            if not count:
                return 0, b""
            self._lost = False
        if self._fresh:
            self._snapshot = [record for record in self._everything() if self.wants(record)]
            self._place = 0
            self._waiting.append((self._current, None))
            self._fresh = False
        while self._place < len(self._snapshot):
            record = self._snapshot[self._place]
            before = count
            count, size = self._put(parts, count, size, self._present(record), record)
            if count == before:
                return count, b"".join(parts)
            self._place += 1
        self._snapshot, self._place = [], 0
        while self._waiting:
            before = count
            count, size = self._put(parts, count, size, *self._waiting[0])
            if count == before:
                break
            self._waiting.popleft()
        return count, b"".join(parts)

    def _put(self, parts: list[bytes], count: int, size: int, kind: int, record: R | None) -> tuple[int, int]:
        event = self._pack(kind, record)
        if LENGTH.size + len(event) > size:
            return count, size
        parts += (LENGTH.pack(len(event)), event)
        return count + 1, size - LENGTH.size - len(event)


class _Watch(Generic[R]):
    """One subscription. `told`: it was sent a pulse since it last read everything."""

    __slots__ = ("code", "connection", "queue", "reader", "told", "uid")

    def __init__(self, queue: EventQueue[R], uid: int, connection: Connection | None, code: int) -> None:
        self.queue = queue
        self.uid = uid
        self.connection = connection
        self.code = code
        self.reader: Message | None = None
        self.told = False


class Watches(Generic[R]):
    """The subscriptions of one channel. *value*: what a pulse says of an event."""

    def __init__(self, kernel: Kernel, value: Callable[[int, R | None], int]) -> None:
        self._kernel = kernel
        self._value = value
        self._watches: dict[int, _Watch[R]] = {}
        self._per_user: Counter[int] = Counter()
        self._again: Timer | None = None
        self._serving = False

    def __len__(self) -> int:
        return len(self._watches)

    def waiting(self) -> int:
        """Events that wait, of all."""
        return sum(len(watch.queue) for watch in self._watches.values())

    def overflows(self) -> int:
        return sum(watch.queue.overflows for watch in self._watches.values())

    def watch(self, message: Message, queue: EventQueue[R], code: int, chid: int) -> None:
        """Answer a WATCH."""
        who = message.info.credentials
        if code > PULSE_CODE_MAX:
            message.error(errno.EINVAL)
        elif message.info.scoid in self._watches:
            message.error(errno.EBUSY)
        elif len(self._watches) >= WATCHES_MAX or (who.uid and self._per_user[who.uid] >= WATCHES_PER_USER):
            message.error(errno.EAGAIN)
        else:
            connection = self._kernel.connect(ND_LOCAL, who.pid, chid, who) if chid else None
            watch = self._watches[message.info.scoid] = _Watch(queue, who.uid, connection, code)
            self._per_user[who.uid] += 1
            message.reply()
            self._tell(watch)

    def read(self, message: Message, flags: int) -> None:
        """Answer a READ, now or when something happens."""
        watch = self._watches.get(message.info.scoid)
        if watch is None:
            message.error(errno.ENOENT)
        elif watch.queue:
            self._give(watch, message)
        elif flags & NOWAIT:
            watch.told = False
            message.error(errno.EAGAIN)
        elif watch.reader is not None:
            message.error(errno.EBUSY)
        else:
            watch.reader = message
            watch.told = False
            message.on_unblock = lambda: self._let_go(watch)

    def _let_go(self, watch: _Watch[R]) -> None:
        reader, watch.reader = watch.reader, None
        if reader is not None:
            reader.error(errno.EINTR)

    def _give(self, watch: _Watch[R], message: Message) -> None:
        count, data = watch.queue.take(message.reply_len)
        if not watch.queue:
            watch.told = False
        if count:
            message.reply(count, data)
        else:
            message.error(errno.EMSGSIZE)

    def push(self, kind: int, record: R) -> None:
        """Something changed. Who waits for it is answered at the end of the turn, with all that changed in it."""
        for watch in self._watches.values():
            watch.queue.push(kind, record)
        if self._watches and not self._serving:
            self._serving = True
            self._kernel.own_dispatch.at_turn_end(self._serve)

    def _serve(self) -> None:
        self._serving = False
        for watch in list(self._watches.values()):
            if not watch.queue:
                continue
            reader, watch.reader = watch.reader, None
            if reader is not None:
                self._give(watch, reader)
            self._tell(watch)

    def _tell(self, watch: _Watch[R]) -> None:
        """A pulse to who wants one and has had none since it read everything."""
        if watch.connection is None or watch.told or not watch.queue:
            return
        status = watch.connection.pulse(watch.code, self._value(*watch.queue.first()))
        if status == 0:
            watch.told = True
        elif status == -errno.EAGAIN and self._again is None:
            self._again = self._kernel.own_dispatch.call_at(self._kernel.own_dispatch.now() + NOTIFY_AGAIN, self._tell_again)

    def _tell_again(self) -> None:
        self._again = None
        for watch in list(self._watches.values()):
            self._tell(watch)

    def closed(self, scoid: int) -> None:
        """A connection is gone, and its subscription."""
        watch = self._watches.pop(scoid, None)
        if watch is None:
            return
        self._per_user[watch.uid] -= 1
        if not self._per_user[watch.uid]:
            del self._per_user[watch.uid]
        if watch.connection is not None:
            watch.connection.close()
        self._let_go(watch)

    def close(self) -> None:
        """End all."""
        for scoid in list(self._watches):
            self.closed(scoid)
        if self._again is not None:
            self._again.cancel()
            self._again = None
