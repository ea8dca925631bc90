"""`LocalSend`: a message whose client is in this kernel. See `resmgr.channel`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from resmgr.dispatch import Buffer
from resmgr.relay import Descriptors, Pending, ReadDone

if TYPE_CHECKING:
    from resmgr.channel import Connection

Done = Callable[[int, Buffer], None]
DescriptorsDone = Callable[[int, Buffer, Descriptors], None]


class LocalSend:
    """A message whose client is in this kernel. Between two ends here buffers go by reference; only several parts are joined."""

    __slots__ = ("connection", "data", "descriptors", "descriptors_done", "done", "pending", "pushed", "reply_len")

    def __init__(
        self,
        connection: Connection,
        parts: Sequence[Buffer],
        reply_len: int,
        done: Done | None,
        descriptors: Descriptors = (),
        descriptors_done: DescriptorsDone | None = None,
    ) -> None:
        self.connection = connection
        self.data: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        self.reply_len = reply_len
        self.done = done
        self.descriptors = descriptors
        self.descriptors_done = descriptors_done
        self.pushed: bytearray | None = None
        self.pending: Pending | None = None

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        self.connection.sends.pop(self, None)
        done, self.done = self.done, None
        descriptors_done, self.descriptors_done = self.descriptors_done, None
        if done is None and descriptors_done is None:
            # The connection was closed meanwhile, and `done` told so. Now the server has answered.
            self.connection.kernel.answered_late(self.connection)
            return
        reply: Buffer = b""
        if status >= 0:
            if self.pushed is not None:
                data = b"".join(parts)
                self.pushed[0 : len(data)] = data
                reply = memoryview(self.pushed)[: self.reply_len]
            else:
                reply = parts[0] if len(parts) == 1 else b"".join(parts)
                if len(reply) > self.reply_len:
                    reply = memoryview(reply)[: self.reply_len]
        shield = self.connection.shield
        if done is not None:
            if shield is None:
                done(status, reply)
            else:
                shield.run("connection: answer", done, status, reply)
        elif descriptors_done is not None:
            if shield is None:
                descriptors_done(status, reply, descriptors)
            else:
                shield.run("connection: answer", descriptors_done, status, reply, descriptors)

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        if self.done is None and self.descriptors_done is None:
            done(-errno.ESRCH, b"")
            return
        piece = memoryview(self.data)[offset : offset + length]
        done(len(piece), piece)

    def push(self, offset: int, data: Buffer) -> None:
        if self.done is None and self.descriptors_done is None:
            return
        if self.pushed is None:
            self.pushed = bytearray()
        end = offset + len(data)
        if len(self.pushed) < end:
            self.pushed.extend(bytes(end - len(self.pushed)))
        self.pushed[offset:end] = data

    def unblock(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.unblock()
