"""A blocking program's end of a connection, the sends on it, and what came of them. See `resmgr.client`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from resmgr import message as wire
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, ResmgrError
from resmgr.ids import FIRST_PART_DEFAULT

if TYPE_CHECKING:
    from resmgr.client import Client
    from resmgr.clientlink import Link
    from resmgr.events import Events
    from resmgr.server import Channel

UNBLOCK_GRACE = 1.0
"""Seconds that are left to a server, or to who does not read, when we give up."""


class Reply(NamedTuple):
    """What a server answered: `status` (>= 0), data, and descriptors, which are the caller's to close."""

    status: int
    data: Buffer
    descriptors: tuple[int, ...] = ()


class Connection:
    """A client's end of a connection (coid). Attaching is local: a wrong target shows at the first send."""

    __slots__ = (
        "chid",
        "client",
        "closed",
        "connected",
        "dead",
        "events",
        "first_part",
        "inherits",
        "link",
        "nd",
        "number",
        "on_death",
        "pid",
        "priority",
        "sends",
    )

    def __init__(self, client: Client, number: int, nd: int, pid: int, chid: int, priority: int) -> None:
        self.client = client
        self.number = number
        self.nd = nd
        self.pid = pid
        self.chid = chid
        self.priority = priority
        self.first_part = FIRST_PART_DEFAULT
        self.connected = False
        self.closed = False
        self.dead = False
        self.sends = 0
        self.link: Link | None = None
        """The way that it takes; None until something was sent."""
        self.inherits = True
        self.events: Events[Channel] | None = None
        self.on_death: Callable[[Connection], None] | None = None
        """Called, while the program waits for something, when the server is gone, before the pulses of `Channel.coid_death`."""

    def died(self) -> None:
        """The server is gone: the program is told (called by `Client`)."""
        if self.closed:
            return
        if self.on_death is not None:
            self.on_death(self)
        if self.client.service is not None:
            self.client.service.coid_died(self)

    def send(
        self,
        *parts: Buffer,
        reply_len: int = 0,
        timeout: float | None = None,
        descriptors: Sequence[int] = (),
        priority: int | None = None,
    ) -> Reply:
        """Send and wait for the answer (MsgSend). ResmgrError with the server's or the system's errno; ETIMEDOUT after *timeout* seconds,
        when the server has agreed to let go. Ctrl-C unblocks too. *priority*: of this message; beyond what there is counts as the nearest.
        """
        if timeout is None and len(parts) == 1 and not descriptors and self.connected and self.link is not None:
            reply = self.client.exchange(self, self.link, parts[0], reply_len)
            if reply is not None:
                return reply
        return self.submit(*parts, reply_len=reply_len, descriptors=descriptors, priority=priority).wait(timeout)

    def submit(
        self,
        *parts: Buffer,
        reply_len: int = 0,
        descriptors: Sequence[int] = (),
        done: Callable[[Send], None] | None = None,
        priority: int | None = None,
    ) -> Send:
        """Send and go on; wait for the result with `Send.wait`, or take it in *done* while the program waits for something else.

        The parts are borrowed until the send has ended.
        """
        return self.client.start(self, parts, reply_len, descriptors, done, priority)

    def pulse(self, code: int, value: int = 0, priority: int | None = None) -> None:
        """Send a pulse (0 to 127). Does not wait for its delivery."""
        working_at = self.client.working_at if self.inherits else None
        self.client.send_pulse(self, code, value, priority if priority is not None else self.priority if working_at is None else working_at)

    def register_event(self, channel: Channel, code: int, value: int = 0, priority: int | None = None, *, once: bool = False) -> int:
        """Let the server deliver this pulse to *channel*, one of this program's (MsgRegisterEvent; `resmgr.events`). Returns the number to
        hand to it. *once*: the first delivery uses it up. ResmgrError: EBADF, EINVAL, EAGAIN.
        """
        if self.closed or self.dead or channel.closed:
            raise ResmgrError(errno.EBADF)
        if self.events is None:
            from resmgr.events import Events

            self.events = Events()
        return self.events.register(channel, code, value, self.priority if priority is None else priority, once)

    def unregister_event(self, handle: int) -> None:
        """Take an event back (MsgUnregisterEvent)."""
        if self.events is not None:
            self.events.unregister(handle)

    def close(self) -> None:
        """Detach. Sends under way are unblocked and end with EBADF."""
        self.client.detach(self)


class Send:
    """A send under way."""

    __slots__ = ("_reply", "connection", "data", "descriptors", "done", "finished", "pushed", "reply_len", "status", "txn", "unblocked")

    def __init__(self, connection: Connection, txn: int, data: Buffer, reply_len: int, done: Callable[[Send], None] | None) -> None:
        self.connection = connection
        self.txn = txn
        self.data = data
        self.reply_len = reply_len
        self.done = done
        self.finished = False
        self.unblocked = False
        self.status = 0
        """Once finished: the server's status, or -errno."""
        self.pushed: bytearray | None = None
        self.descriptors: tuple[int, ...] = ()
        self._reply: Buffer = b""

    def unblock(self) -> None:
        """Ask the server to let go. The send then ends with EINTR, or with the answer if that was quicker."""
        if not self.finished and not self.unblocked:
            self.unblocked = True
            priority = self.connection.priority
            self.connection.client.transmit((wire.HEADER.pack(wire.UNBLOCK, 0, priority, 0, self.txn),), (), self.connection.link)

    def let_go(self) -> None:
        """Ctrl-C: unblock, and give the server a moment."""
        try:
            self.unblock()
            deadline = time.monotonic() + UNBLOCK_GRACE
            while not self.finished and (left := deadline - time.monotonic()) > 0:
                self.connection.client.pump(left)
        except ResmgrError:
            pass

    def wait(self, timeout: float | None = None) -> Reply:
        """The answer; waits for it. See `Connection.send`."""
        if not self.finished:
            self.connection.client.wait_for(self, timeout)
        return self.result()

    def result(self) -> Reply:
        """The answer of a finished send. ResmgrError if it failed."""
        if not self.finished:
            raise Misuse("the send is still under way")
        if self.status < 0:
            raise ResmgrError(-self.status)
        return Reply(self.status, self._reply, self.descriptors)

    def finish(self, status: int, data: Buffer, descriptors: tuple[int, ...]) -> None:
        """The answer has arrived (called by the client)."""
        self.finished = True
        self.status = status
        self.descriptors = descriptors
        if status >= 0:
            if self.pushed is not None:
                self.pushed[0 : len(data)] = data
                data = self.pushed
            self._reply = data if len(data) <= self.reply_len else memoryview(data)[: self.reply_len]
        self.data = b""
        if self.done is not None:
            self.done(self)

    def push(self, offset: int, data: Buffer) -> None:
        """The server wrote into the reply buffer (called by the client)."""
        if self.pushed is None:
            self.pushed = bytearray()
        end = min(offset + len(data), self.reply_len)
        if len(self.pushed) < end:
            self.pushed.extend(bytes(end - len(self.pushed)))
        self.pushed[offset:end] = data[: max(0, end - offset)]
