"""The server's half of `resmgr.client`: channels of a blocking program without Trio.

    channel = client.channel()
    while True:
        message = channel.receive()
        if isinstance(message, Pulse):
            ...
        else:
            message.reply(0, b"answer")

A client that gives up: with `unblock=False` (QNX: a channel without _NTO_CHF_UNBLOCK) it is let go at once, and what the server answers
later is dropped; with `unblock=True` the server gets a pulse PULSE_UNBLOCK whose value is the message's `number`, and must answer it.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from typing import NamedTuple

from resmgr import message as wire
from resmgr.client import Client, Connection
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse, ResmgrError
from resmgr.events import HANDLE_MAX
from resmgr.ids import PRIORITY_DEFAULT, PRIORITY_MAX, PULSE_CODE_MAX, PULSE_DISCONNECT, PULSE_UNBLOCK
from resmgr.waiting import Waiting


class Sender(NamedTuple):
    """Who sent a message: `resmgr.channel.ClientInfo` without its cost at import. `node` is empty for a client of this node."""

    nd: int
    node: str
    roles: tuple[str, ...]
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    scoid: int


class Pulse(NamedTuple):
    code: int
    value: int
    priority: int
    info: Sender


class Message:
    """A received message (rcvid): answer it exactly once. `data` is the part that has arrived; pull the rest with `read`."""

    __slots__ = (
        "_pushed",
        "_service",
        "answered",
        "data",
        "descriptors",
        "gone",
        "info",
        "msglen",
        "number",
        "priority",
        "received",
        "reply_len",
    )

    def __init__(
        self,
        service: Service,
        number: int,
        info: Sender,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        descriptors: tuple[int, ...],
    ) -> None:
        self._service = service
        self.number = number
        self.info = info
        self.data = data
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority
        self.descriptors = descriptors
        """Descriptors that came along; closed when the message is answered: `os.dup` what you keep."""
        self.answered = False
        self.received = False
        self.gone = False
        """The client waits no more."""

    def reply(self, status: int = 0, *parts: Buffer, descriptors: tuple[int, ...] = ()) -> None:
        """MsgReply. Data beyond the client's reply buffer is cut."""
        if status < 0:
            raise Misuse("an error is answered with `error`")
        self._answer(status, parts, descriptors)

    def error(self, code: int) -> None:
        """MsgError with errno *code*."""
        self._answer(-code, (), ())

    def read(self, offset: int, length: int) -> Buffer:
        """MsgRead: up to *length* bytes at *offset* of what the client sent; blocks. ResmgrError(ESRCH) when the client is gone."""
        end = min(offset + length, self.msglen)
        if end <= len(self.data):
            return memoryview(self.data)[offset:end]
        if self.gone or self.answered:
            raise ResmgrError(errno.ESRCH)
        here = memoryview(self.data)[offset:end]
        return self._service.pull(self, here, offset + len(here), end)

    def write(self, offset: int, data: Buffer) -> int:
        """MsgWrite: put *data* into the client's reply buffer. Returns the bytes that fit. ResmgrError(ESRCH) when the client is gone."""
        if self.gone or self.answered:
            raise ResmgrError(errno.ESRCH)
        view = memoryview(data)[: max(0, self.reply_len - offset)]
        self._service.push(self, offset, view)
        return len(view)

    def deliver_event(self, handle: int) -> None:
        """MsgDeliverEvent to the client of this message, which may have been answered. See `Channel.deliver_event`."""
        self._service.deliver_event(self.info, handle)

    def let_go(self) -> None:
        """Release the client without an answer of the server's (called by the service)."""
        self.gone = True
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = ()

    def _answer(self, status: int, parts: tuple[Buffer, ...], descriptors: tuple[int, ...]) -> None:
        if self.answered:
            raise Misuse("message answered twice")
        self.answered = True
        if self.gone:
            return
        whole = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))[: self.reply_len]
        if len(whole) > wire.CHUNK_MAX:
            self._service.push(self, wire.CHUNK_MAX, whole[wire.CHUNK_MAX :])
            whole = whole[: wire.CHUNK_MAX]
        self._service.finish(self, status, whole, descriptors)
        self.let_go()


class Channel:
    """A server's end. Messages wait here until `receive` takes them."""

    def __init__(self, service: Service, chid: int, first_part: int, remote: bool, unblock: bool) -> None:
        self.chid = chid
        self.first_part = first_part
        self.remote = remote
        self.unblock = unblock
        self.waiting: Waiting[Message, Pulse] = Waiting()
        self.closed = False
        self._service = service

    @property
    def pid(self) -> int:
        return self._service.client.pid

    def receive(self, timeout: float | None = None) -> Message | Pulse | None:
        """MsgReceive: the next message or pulse, highest priority first; None after *timeout* seconds. ResmgrError(ESRCH) if the channel is
        closed. Until the next call, the program sends with the priority of what it received.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._service.client.working_at = None
        while True:
            while self.waiting:
                item = self.waiting.take()
                if isinstance(item, Message):
                    if item.gone:
                        item.answered = True  # its client gave up before anybody received it
                        continue
                    item.received = True
                self._service.client.working_at = item.priority
                return item
            if self.closed:
                raise ResmgrError(errno.ESRCH, "the channel is closed")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._service.client.pump(left)

    def deliver_event(self, client: Sender, handle: int) -> None:
        """MsgDeliverEvent: the event that *client* (`Message.info`) has registered (`resmgr.events`). Does not wait. ResmgrError(ESRCH)
        when the client is gone; what it never registered is dropped at the client.
        """
        self._service.deliver_event(client, handle)

    def close(self) -> None:
        """Clients that wait here get ESRCH, later ones EBADF, connected ones a death pulse."""
        self._service.close_channel(self)


class _Inlet(NamedTuple):
    channel: Channel
    info: Sender
    block: wire.ConnectBlock


class Service:
    """The channels of one `Client`, and what arrives for them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._channels: dict[int, Channel] = {}
        self._inlets: dict[int, _Inlet] = {}
        self._messages: dict[int, tuple[Message, _Inlet]] = {}
        self._reads: dict[int, tuple[int, memoryview] | None] = {}
        self._next_read = 0
        self._next_chid = client.first_chid
        self.dropped = 0
        """Messages that did not parse or made no sense."""

    def channel(self, first_part: int, remote: bool, unblock: bool) -> Channel:
        channel = Channel(self, self._next_chid, first_part, remote, unblock)
        self._next_chid += 1
        self._channels[channel.chid] = channel
        return channel

    def close_channel(self, channel: Channel) -> None:
        if self._channels.pop(channel.chid, None) is None:
            return
        channel.closed = True
        for message, inlet in list(self._messages.values()):
            if inlet.channel is channel:
                self._release(message, -errno.ESRCH)
        for number, inlet in list(self._inlets.items()):
            if inlet.channel is channel:
                del self._inlets[number]
                self._say(wire.DEATH, number)

    def lost(self) -> None:
        """The daemon is gone."""
        for message, _ in self._messages.values():
            message.let_go()
        self._messages.clear()
        self._inlets.clear()
        for channel in self._channels.values():
            channel.closed = True
        self._channels.clear()

    def deliver_event(self, client: Sender, handle: int) -> None:
        """`Channel.deliver_event`."""
        if not 0 < handle <= HANDLE_MAX:
            raise ResmgrError(errno.EINVAL)
        if client.scoid not in self._inlets:
            raise ResmgrError(errno.ESRCH)
        self.client.transmit((wire.pack_event(client.scoid, handle, PRIORITY_DEFAULT),))

    def delivered(self, connection: Connection, handle: int) -> None:
        """The server of *connection* delivers an event."""
        event = None if connection.events is None or connection.closed else connection.events.delivered(handle)
        if event is None or event.channel.closed:
            self.dropped += 1
            return
        event.channel.waiting.add_pulse(Pulse(event.code, event.value, event.priority, self._self(connection)))

    def _self(self, connection: Connection) -> Sender:
        return Sender(0, "", (), self.client.pid, os.geteuid(), os.getegid(), (), connection.number)

    def handle(self, kind: int, view: memoryview, descriptors: tuple[int, ...]) -> None:
        """One message from the daemon (called by the client)."""
        try:
            if kind == wire.SEND:
                self._on_send(view, descriptors)
                descriptors = ()
            elif kind == wire.PULSE:
                self._on_pulse(view)
            elif kind == wire.UNBLOCK:
                self._on_unblock(wire.parse_bare(view))
            elif kind == wire.DETACH:
                self._on_detach(wire.parse_bare(view))
            elif kind == wire.READ_DATA:
                _, number, status, data = wire.parse_read_data(view)
                if number in self._reads:
                    self._reads[number] = (status, data)
            else:
                self.dropped += 1
        except BadMessage:
            self.dropped += 1
            for fd in descriptors:
                os.close(fd)

    def pull(self, message: Message, here: memoryview, offset: int, end: int) -> Buffer:
        """READs in windows of four, until *end* or until the client has no more."""
        chunks: list[memoryview] = [here] if len(here) else []
        window: deque[tuple[int, int]] = deque()
        try:
            while offset < end or window:
                while offset < end and len(window) < 4:
                    length = min(wire.PULL_CHUNK, end - offset)
                    number = self._next_read = self._next_read + 1 & wire.ID_MAX
                    self._reads[number] = None
                    window.append((number, length))
                    head = wire.READ_HEADER.pack(wire.READ, 0, message.priority, 0, message.number, number, length, offset)
                    self.client.transmit((head,))
                    offset += length
                number, length = window[0]
                while (answer := self._reads[number]) is None:
                    if message.gone:
                        raise ResmgrError(errno.ESRCH)
                    self.client.pump(None)
                window.popleft()
                del self._reads[number]
                status, data = answer
                if status > 0:
                    chunks.append(data)
                if status < length:
                    if status < 0 and not chunks:
                        raise ResmgrError(-status)
                    break
        finally:
            for number, _ in window:
                del self._reads[number]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def push(self, message: Message, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), wire.CHUNK_MAX):
            head = wire.WRITE_HEADER.pack(wire.WRITE, 0, message.priority, 0, message.number, offset + start)
            self.client.transmit((head, view[start : start + wire.CHUNK_MAX]))

    def finish(self, message: Message, status: int, data: Buffer, descriptors: tuple[int, ...]) -> None:
        """REPLY."""
        entry = self._messages.pop(message.number, None)
        if entry is None:
            return
        inlet = entry[1]
        flags = wire.CONNECTED if inlet.info.scoid in self._inlets else 0
        grant = min(inlet.channel.first_part, wire.CHUNK_MAX)
        head = wire.REPLY_HEADER.pack(wire.REPLY, flags, 0, len(descriptors), message.number, grant, status)
        self.client.transmit((head, data) if len(data) else (head,), descriptors)

    def _release(self, message: Message, status: int) -> None:
        if not message.gone:
            self.finish(message, status, b"", ())
            message.let_go()

    def _say(self, kind: int, number: int) -> None:
        self.client.transmit((wire.HEADER.pack(kind, 0, 0, 0, number),))

    def _open(self, number: int, block: wire.ConnectBlock | None) -> _Inlet | None:
        inlet = self._inlets.get(number)
        if inlet is not None:
            if block is not None and block != inlet.block:
                raise BadMessage("connects a connection anew")
            return inlet
        channel = None if block is None else self._channels.get(block.chid)
        if block is None or channel is None or (block.client_nd and not channel.remote):
            return None
        info = Sender(block.client_nd, block.node or "", block.roles, block.client_pid, block.uid, block.gid, block.groups, number)
        inlet = self._inlets[number] = _Inlet(channel, info, block)
        return inlet

    def _on_send(self, view: memoryview, descriptors: tuple[int, ...]) -> None:
        _, priority, _, txn, number, reply_len, msglen, block, data = wire.parse_send(view)
        inlet = self._open(number, block)
        if inlet is None:
            for fd in descriptors:
                os.close(fd)
            self.client.transmit((wire.REPLY_HEADER.pack(wire.REPLY, 0, 0, 0, txn, 0, -errno.EBADF),))
            return
        message = Message(self, txn, inlet.info, data, msglen, reply_len, min(priority, PRIORITY_MAX), descriptors)
        self._messages[txn] = (message, inlet)
        inlet.channel.waiting.add(message)

    def _on_pulse(self, view: memoryview) -> None:
        priority, number, code, value, block = wire.parse_pulse(view)
        if not 0 <= code <= PULSE_CODE_MAX:
            raise BadMessage("PULSE with a system code")
        inlet = self._open(number, block)
        if inlet is None:
            self._say(wire.DEATH, number)
        else:
            inlet.channel.waiting.add_pulse(Pulse(code, value, min(priority, PRIORITY_MAX), inlet.info))

    def _on_unblock(self, txn: int) -> None:
        entry = self._messages.get(txn)
        if entry is None:
            return
        message, inlet = entry
        if inlet.channel.unblock and message.received:
            inlet.channel.waiting.add_pulse(Pulse(PULSE_UNBLOCK, txn, message.priority, inlet.info))
        else:
            self._release(message, -errno.EINTR)

    def _on_detach(self, number: int) -> None:
        inlet = self._inlets.pop(number, None)
        if inlet is not None:
            inlet.channel.waiting.add_pulse(Pulse(PULSE_DISCONNECT, number, PRIORITY_DEFAULT, inlet.info))
