"""What a server receives: `Message` and `Pulse`. See `resmgr.channel`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from resmgr.credentials import ClientInfo
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse, check_reply, errno_told
from resmgr.relay import GONE, Answerer, Descriptors, ReadDone
from resmgr.shield import shielded_read

if TYPE_CHECKING:
    from resmgr.channel import Channel


class Message:
    """A received message, the server's rcvid: answer it exactly once with `reply` or `error`.

    `data` is the part that has arrived, `msglen` the length of everything the client sent: pull the rest with `read`. `reply_len` is the
    size of the client's reply buffer, so the byte counts of `write` and `reply` are exact, at home and away.
    """

    __slots__ = ("_pending", "channel", "data", "descriptors", "info", "msglen", "on_unblock", "priority", "reply_len")

    def __init__(
        self,
        channel: Channel,
        info: ClientInfo,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        pending: Answerer,
        descriptors: Descriptors = (),
    ) -> None:
        self.channel = channel
        self.info = info
        self.data = data
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority
        self.descriptors = descriptors
        """Descriptors that came with the message, lent until it is answered; `os.dup` what you keep."""
        self.on_unblock: Callable[[], None] | None = None
        """Set by a server that wants to finish or undo work when the client gives up; it must then still answer."""
        self._pending: Answerer | None = pending

    @property
    def answered(self) -> bool:
        """Whether the server has answered. It answers once even if the client is gone."""
        return self._pending is None

    @property
    def client_waits(self) -> bool:
        """Whether an answer would still reach somebody."""
        return self._pending is not None and self._pending is not GONE

    def reply(self, status: int = 0, *parts: Buffer, descriptors: Descriptors = ()) -> None:
        """Answer with *status* (>= 0) and data. Data beyond the client's reply buffer is cut, as MsgReply does. Does not block.

        *descriptors* are lent until this returns and reach a client on this node; one on another node gets ENOTSUP in place of the reply.
        Misuse for a status below 0 and for data that is no buffer; then the message is still to be answered.
        """
        check_reply(status, parts)
        self._answer(status, parts, descriptors)

    def error(self, code: int) -> None:
        """Answer with errno *code*; the client's send fails with it. What is no errno is told as EIO."""
        self._answer(-errno_told(code), (), ())

    def _answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        pending = self._pending
        if pending is None:
            raise Misuse("message answered twice")
        self._pending = None
        # What it refers to usually refers to the message: a ring that would keep the data until the next garbage collection.
        self.on_unblock = None
        self.channel.held.pop(self, None)
        pending.answer(status, parts, descriptors)

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        """Pull up to *length* bytes at *offset* of what the client sent (MsgRead). `done(count or -errno, bytes)`; may run before return.

        ESRCH when the client is no longer blocked.
        """
        shield = self.channel.shield
        if shield is not None:
            done = shielded_read(shield, done)
        if self._pending is None:
            done(-errno.ESRCH, b"")
        else:
            self._pending.pull(offset, length, done)

    def write(self, offset: int, data: Buffer) -> int:
        """Push *data* into the client's reply buffer at *offset* (MsgWrite) ahead of the reply. Returns the bytes that fit, exactly.

        -ESRCH when the client is no longer blocked. Does not block; order with a later `reply` is kept. *data* is borrowed like a reply's.
        """
        if not self.client_waits:
            return -errno.ESRCH
        count = max(0, min(len(data), self.reply_len - offset))
        if count and self._pending is not None:
            self._pending.push(offset, memoryview(data)[:count])
        return count

    def deliver_event(self, handle: int) -> int:
        """`Channel.deliver_event` to the client of this message, which may have been answered already."""
        return self.channel.deliver_event(self.info, handle)

    def unblock(self) -> None:
        """The client wants out (kernel side: called by whoever carries the message). The server decides through `on_unblock`."""
        if not self.client_waits:
            return
        if self.on_unblock is not None:
            if self.channel.shield is None:
                self.on_unblock()
            elif not self.channel.shield.run("channel: unblock", self.on_unblock) and self.client_waits:
                self.abandon(errno.EINTR)
        else:
            self.abandon(errno.EINTR)

    def abandon(self, code: int) -> None:
        """End the client's send with errno *code*; the server still holds the message and its answer will be dropped (kernel side)."""
        pending = self._pending
        if pending is not None and pending is not GONE:
            self._pending = GONE
            pending.answer(-code, (), ())


@attrs.frozen
class Pulse:
    """A small message nobody waits for. Negative codes are the system's."""

    code: int
    value: int
    priority: int
    info: ClientInfo
