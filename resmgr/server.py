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
import resource
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from resmgr import directproto as proto
from resmgr import message as wire
from resmgr.client import Client, Connection
from resmgr.clientlink import OUTPUT_HIGH, Link
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse, ResmgrError, check_reply, errno_told
from resmgr.events import HANDLE_MAX
from resmgr.exchange import SIMPLE_MAX, answer_plain
from resmgr.ids import (
    FIRST_PART_DEFAULT,
    ND_LOCAL,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    PULSE_CODE_MAX,
    PULSE_COIDDEATH,
    PULSE_DISCONNECT,
    PULSE_UNBLOCK,
)
from resmgr.waiting import Waiting

CONNECTIONS_MAX = 16384
PENDING_MAX = 4096
HELD_MAX = 64 << 20
HELD_PLAIN = HELD_MAX - (1 << 16)
"""Connections, messages that the server holds, and bytes of their beginnings, of one link; more get EAGAIN. The caps of `resmgr.serving`,
which costs too much at import."""


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

    answered = False
    received = False
    gone = False
    """The client waits no more."""
    descriptors: tuple[int, ...] = ()
    """Descriptors that came along; closed when the message is answered: `os.dup` what you keep."""

    def __init__(
        self, service: Service, number: int, inlet: Inlet, txn: int, data: Buffer, msglen: int, reply_len: int, priority: int
    ) -> None:
        self._service = service
        self.number = number
        self.inlet = inlet
        self.txn = txn
        self.info = inlet.info
        self.data = data
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority

    def reply(self, status: int = 0, *parts: Buffer, descriptors: tuple[int, ...] = ()) -> None:
        """MsgReply. Data beyond the client's reply buffer is cut. Misuse for a status below 0 and for data that is no buffer; then the
        message is still to be answered."""
        check_reply(status, parts)
        if len(parts) == 1 and not descriptors and not self.answered and not self.gone and not self.descriptors:
            data = parts[0]
            if len(data) <= SIMPLE_MAX and len(data) <= self.reply_len and self._service.answered_plainly(self, status, data):
                self.answered = self.gone = True
                return
        self._answer(status, parts, descriptors)

    def error(self, code: int) -> None:
        """MsgError with errno *code*. What is no errno is told as EIO."""
        self._answer(-errno_told(code), (), ())

    def read(self, offset: int, length: int) -> Buffer:
        """MsgRead: up to *length* bytes at *offset* of what the client sent; blocks. ResmgrError(ESRCH) when the client is gone."""
        end = min(offset + length, self.msglen)
        if end <= len(self.data):
            return memoryview(self.data)[offset:end]
        if self.gone or self.answered or self.inlet.link.gone:
            raise ResmgrError(errno.ESRCH)
        here = memoryview(self.data)[offset:end]
        return self._service.pull(self, here, offset + len(here), end)

    def write(self, offset: int, data: Buffer) -> int:
        """MsgWrite: put *data* into the client's reply buffer. Returns the bytes that fit. ResmgrError(ESRCH) when the client is gone."""
        if self.gone or self.answered or self.inlet.link.gone:
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
        self.inlet.link.discard(self.descriptors)
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
    """A server's end. Messages wait here until `receive` takes them. With *coid_death*, so do pulses PULSE_COIDDEATH about connections of
    this program whose server is gone; the value is `Connection.number`."""

    def __init__(self, service: Service, chid: int, first_part: int, remote: bool, unblock: bool, coid_death: bool = False) -> None:
        self.chid = chid
        self.first_part = first_part
        self.remote = remote
        self.unblock = unblock
        self.coid_death = coid_death
        self.waiting: Waiting[Message, Pulse] = Waiting()
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        """Called once when the program closes it: what others know it by goes with it (`resmgr.names.client`)."""
        self._service = service

    @property
    def pid(self) -> int:
        return self._service.client.pid

    def receive(self, timeout: float | None = None) -> Message | Pulse | None:
        """MsgReceive: the next message or pulse, highest priority first; None after *timeout* seconds. ResmgrError(ESRCH) if the channel is
        closed. Until the next call, the program sends with the priority of what it received.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        client = self._service.client
        client.working_at = None
        if not self.waiting and timeout is None and not self.closed:
            message = client.next_plain(self)
            if message is not None:
                return message
        while True:
            while self.waiting:
                item = self.waiting.take()
                if isinstance(item, Message):
                    if item.gone:
                        item.answered = True  # its client gave up before anybody received it
                        continue
                    item.received = True
                client.working_at = item.priority
                return item
            if self.closed:
                raise ResmgrError(errno.ESRCH, "the channel is closed")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if client.pump(left):
                client.gather()

    def deliver_event(self, client: Sender, handle: int) -> None:
        """MsgDeliverEvent: the event that *client* (`Message.info`) has registered (`resmgr.events`). Does not wait. ResmgrError(ESRCH)
        when the client is gone; what it never registered is dropped at the client.
        """
        self._service.deliver_event(client, handle)

    def close(self) -> None:
        """Clients that wait here get ESRCH, later ones EBADF, connected ones a death pulse."""
        self._service.close_channel(self)


class Inlet:
    """A connection of a client to a channel of ours. `number` is the client's, on its link; `info.scoid` is ours."""

    __slots__ = ("block", "channel", "info", "link", "number", "unanswered")

    def __init__(self, channel: Channel, info: Sender, block: wire.ConnectBlock, link: Link, number: int) -> None:
        self.channel = channel
        self.info = info
        self.block = block
        self.link = link
        self.number = number
        self.unanswered = 0
        """Of a link that has ended: messages that the server has not answered."""


class Service:
    """The channels of one `Client`, and what arrives for them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._channels: dict[int, Channel] = {}
        self._inlets: dict[int, Inlet] = {}
        """By scoid."""
        self._reads: dict[tuple[Link, int], tuple[int, memoryview] | None] = {}
        self._next_read = self._next_scoid = self._next_number = 0
        self._next_chid = client.first_chid
        self.dropped = 0
        """Messages that did not parse or made no sense."""
        if client.makes_direct:
            most = proto.links_offered(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            client.transmit((proto.pack_bare(proto.OFFER, most),))

    def channel(self, first_part: int, remote: bool, unblock: bool, coid_death: bool = False) -> Channel:
        channel = Channel(self, self._next_chid, first_part, remote, unblock, coid_death)
        self._next_chid += 1
        self._channels[channel.chid] = channel
        return channel

    def close_channel(self, channel: Channel) -> None:
        if self._channels.pop(channel.chid, None) is None:
            return
        channel.closed = True
        for link in self._links():
            for message in [message for message in link.messages.values() if message.inlet.channel is channel]:
                self._release(message, -errno.ESRCH)
        for scoid, inlet in list(self._inlets.items()):
            if inlet.channel is channel:
                del self._inlets[scoid], inlet.link.inlets[inlet.number]
                self._say(inlet.link, wire.DEATH, inlet.number)
        if channel.on_close is not None:
            channel.on_close()

    def _links(self) -> set[Link]:
        return {self.client.daemon, *(inlet.link for inlet in self._inlets.values())}

    def end(self, link: Link) -> None:
        """A client's direct link has ended: its messages are let go, or their server is asked; then it hears of the disconnect."""
        messages, link.messages = list(link.messages.values()), {}
        for message in messages:
            inlet = message.inlet
            if inlet.channel.unblock and message.received:
                inlet.unanswered += 1
                inlet.channel.waiting.add_pulse(Pulse(PULSE_UNBLOCK, message.number, message.priority, inlet.info))
            else:
                message.let_go()
        inlets, link.inlets = list(link.inlets.values()), {}
        for inlet in inlets:
            self._inlets.pop(inlet.info.scoid, None)
            if not inlet.unanswered:
                self._disconnected(inlet)

    def coid_died(self, connection: Connection) -> None:
        """The server of a connection of ours is gone."""
        for channel in self._channels.values():
            if channel.coid_death:
                me = Sender(ND_LOCAL, "", (), self.client.pid, os.geteuid(), os.getegid(), tuple(os.getgroups()), 0)
                channel.waiting.add_pulse(Pulse(PULSE_COIDDEATH, connection.number, connection.priority, me))

    def lost(self) -> None:
        """The daemon is gone."""
        for message in self.client.daemon.messages.values():
            message.let_go()
        self.client.daemon.messages.clear()
        self._inlets.clear()
        for channel in self._channels.values():
            channel.closed = True
        self._channels.clear()

    def deliver_event(self, client: Sender, handle: int) -> None:
        """`Channel.deliver_event`."""
        if not 0 < handle <= HANDLE_MAX:
            raise ResmgrError(errno.EINVAL)
        inlet = self._inlets.get(client.scoid)
        if inlet is None:
            raise ResmgrError(errno.ESRCH)
        if inlet.link.queued > OUTPUT_HIGH:
            raise ResmgrError(errno.EAGAIN)
        self.client.transmit((wire.pack_event(inlet.number, handle, PRIORITY_DEFAULT),), (), inlet.link)

    def delivered(self, connection: Connection, handle: int) -> None:
        """The server of *connection* delivers an event."""
        event = None if connection.events is None or connection.closed else connection.events.delivered(handle)
        if event is None or event.channel.closed:
            self.dropped += 1
            return
        event.channel.waiting.add_pulse(Pulse(event.code, event.value, event.priority, self._self(connection)))

    def _self(self, connection: Connection) -> Sender:
        return Sender(0, "", (), self.client.pid, os.geteuid(), os.getegid(), (), connection.number)

    def handle(self, link: Link, kind: int, view: memoryview, descriptors: tuple[int, ...]) -> None:
        """One message of a client's side (called by the client)."""
        try:
            if kind == wire.SEND:
                self._on_send(link, view, descriptors)
                descriptors = ()
            elif kind == wire.PULSE:
                self._on_pulse(link, view)
            elif kind == wire.UNBLOCK:
                self._on_unblock(link, wire.parse_bare(view))
            elif kind == wire.DETACH:
                self._on_detach(link, wire.parse_bare(view))
            elif kind == wire.READ_DATA:
                _, number, status, data = wire.parse_read_data(view)
                if (link, number) in self._reads:
                    self._reads[link, number] = (status, data)
            elif kind == proto.ACCEPT and not link.direct:
                self._on_accept(view, descriptors)
                descriptors = ()
            else:
                self.dropped += 1
        except BadMessage:
            self.dropped += 1
        link.discard(descriptors)

    def _on_accept(self, view: memoryview, descriptors: tuple[int, ...]) -> None:
        number, who = proto.parse_accept(view)
        if len(descriptors) != 1:
            self.client.transmit((proto.pack_bare(proto.UNLINK, number),))  # we have no room for its descriptor
            return
        link = self.client.adopt(descriptors[0])
        link.number, link.who = number, who

    def pull(self, message: Message, here: memoryview, offset: int, end: int) -> Buffer:
        """READs in windows of four, until *end* or until the client has no more."""
        chunks: list[memoryview] = [here] if len(here) else []
        window: deque[tuple[int, int]] = deque()
        link = message.inlet.link
        try:
            while offset < end or window:
                while offset < end and len(window) < 4:
                    length = min(wire.PULL_CHUNK, end - offset)
                    number = self._next_read = self._next_read + 1 & wire.ID_MAX
                    self._reads[link, number] = None
                    window.append((number, length))
                    head = wire.READ_HEADER.pack(wire.READ, 0, message.priority, 0, message.txn, number, length, offset)
                    self.client.transmit((head,), (), link)
                    offset += length
                number, length = window[0]
                while (answer := self._reads[link, number]) is None:
                    if message.gone or link.gone:
                        raise ResmgrError(errno.ESRCH)
                    self.client.pump(None)
                window.popleft()
                del self._reads[link, number]
                status, data = answer
                if status > 0:
                    chunks.append(data)
                if status < length:
                    if status < 0 and not chunks:
                        raise ResmgrError(-status)
                    break
        finally:
            for number, _ in window:
                del self._reads[link, number]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def push(self, message: Message, offset: int, view: memoryview) -> None:
        for start in range(0, len(view), wire.CHUNK_MAX):
            head = wire.WRITE_HEADER.pack(wire.WRITE, 0, message.priority, 0, message.txn, offset + start)
            self.client.transmit((head, view[start : start + wire.CHUNK_MAX]), (), message.inlet.link)

    def finish(self, message: Message, status: int, data: Buffer, descriptors: tuple[int, ...]) -> None:
        """REPLY."""
        inlet = message.inlet
        link = inlet.link
        if link.messages.pop(message.txn, None) is None:
            if inlet.unanswered:
                inlet.unanswered -= 1
                if not inlet.unanswered:
                    self._disconnected(inlet)
            return
        link.held -= len(message.data)
        flags = wire.CONNECTED if inlet.number in link.inlets else 0
        grant = min(inlet.channel.first_part, wire.CHUNK_MAX)
        head = wire.REPLY_HEADER.pack(wire.REPLY, flags, 0, len(descriptors), message.txn, grant, status)
        self.client.transmit((head, data) if len(data) else (head,), descriptors, link)

    def _release(self, message: Message, status: int) -> None:
        if not message.gone:
            self.finish(message, status, b"", ())
            message.let_go()

    def _say(self, link: Link, kind: int, number: int) -> None:
        self.client.transmit((wire.HEADER.pack(kind, 0, 0, 0, number),), (), link)

    def _disconnected(self, inlet: Inlet) -> None:
        inlet.channel.waiting.add_pulse(Pulse(PULSE_DISCONNECT, inlet.info.scoid, PRIORITY_DEFAULT, inlet.info))

    def _open(self, link: Link, number: int, block: wire.ConnectBlock | None) -> Inlet | int:
        """The connection of a message; or the errno of why there is none."""
        inlet = link.inlets.get(number)
        if inlet is not None:
            if block is not None and block != inlet.block:
                raise BadMessage("connects a connection anew")
            return inlet
        if block is None:
            return errno.EBADF
        channel = self._channels.get(block.chid)
        who = link.who
        if who is None:
            if channel is None or (block.client_nd and not channel.remote):
                return errno.EBADF
            info = block.client_nd, block.node or "", block.roles, block.client_pid, block.uid, block.gid, block.groups
        else:
            # Of itself the client of a direct link says nothing: the daemon has.
            if channel is None or block.nd or block.pid != self.client.pid:
                return errno.EBADF
            info = 0, "", (), who.client_pid, who.uid, who.gid, who.groups
        if len(link.inlets) >= CONNECTIONS_MAX:
            return errno.EAGAIN
        self._next_scoid += 1
        inlet = link.inlets[number] = self._inlets[self._next_scoid] = Inlet(channel, Sender(*info, self._next_scoid), block, link, number)
        return inlet

    def plain(
        self, link: Link, channel: Channel, number: int, txn: int, data: Buffer, msglen: int, reply_len: int, priority: int
    ) -> Message | None:
        """A message that is received as it arrives; None where something has to be looked at (`resmgr.exchange`)."""
        inlet = link.inlets.get(number)
        messages = link.messages
        if inlet is None or inlet.channel is not channel or txn in messages or len(messages) >= PENDING_MAX or link.held > HELD_PLAIN:
            return None
        if not len(data) <= msglen <= wire.MSGLEN_MAX:
            return None
        self._next_number = number = self._next_number + 1
        message = Message(self, number, inlet, txn, data, msglen, reply_len, priority if priority < PRIORITY_MAX else PRIORITY_MAX)
        message.received = True
        messages[txn] = message
        link.held += len(data)
        self.client.working_at = message.priority
        return message

    def answered_plainly(self, message: Message, status: int, data: Buffer) -> bool:
        """A small answer, if that is all there is to do."""
        inlet = message.inlet
        link = inlet.link
        if link.queued or message.txn not in link.messages or inlet.number not in link.inlets:
            return False
        first_part = inlet.channel.first_part
        grant = first_part if first_part < wire.CHUNK_MAX else wire.CHUNK_MAX
        if not answer_plain(self.client, link, message.txn, grant, status, data):
            return False
        del link.messages[message.txn]
        link.held -= len(message.data)
        return True

    def _on_send(self, link: Link, view: memoryview, descriptors: tuple[int, ...]) -> None:
        _, priority, count, txn, number, reply_len, msglen, block, data = wire.parse_send(view)
        if txn in link.messages:
            raise BadMessage("SEND of a transaction under way")
        inlet = self._open(link, number, block)
        code = inlet if isinstance(inlet, int) else 0
        flags = 0
        if not code and count > len(descriptors):
            code = errno.EMFILE  # the kernel drops those for which there is no room
        elif not code and (len(link.messages) >= PENDING_MAX or link.held + len(data) > HELD_MAX):
            code, flags = errno.EAGAIN, wire.CONNECTED
        if code or isinstance(inlet, int):
            for fd in descriptors:
                os.close(fd)
            self.client.transmit((wire.REPLY_HEADER.pack(wire.REPLY, flags, 0, 0, txn, FIRST_PART_DEFAULT, -code),), (), link)
            return
        self._next_number += 1
        number = self._next_number
        message = Message(self, number, inlet, txn, data, msglen, reply_len, priority if priority < PRIORITY_MAX else PRIORITY_MAX)
        message.descriptors = descriptors
        link.messages[txn] = message
        link.held += len(data)
        inlet.channel.waiting.add(message)

    def _on_pulse(self, link: Link, view: memoryview) -> None:
        priority, number, code, value, block = wire.parse_pulse(view)
        if not 0 <= code <= PULSE_CODE_MAX:
            raise BadMessage("PULSE with a system code")
        inlet = self._open(link, number, block)
        if isinstance(inlet, int):
            self._say(link, wire.DEATH, number)
        else:
            inlet.channel.waiting.add_pulse(Pulse(code, value, min(priority, PRIORITY_MAX), inlet.info))

    def _on_unblock(self, link: Link, txn: int) -> None:
        message = link.messages.get(txn)
        if message is None:
            return
        inlet = message.inlet
        if inlet.channel.unblock and message.received:
            inlet.channel.waiting.add_pulse(Pulse(PULSE_UNBLOCK, message.number, message.priority, inlet.info))
        else:
            self._release(message, -errno.EINTR)

    def _on_detach(self, link: Link, number: int) -> None:
        inlet = link.inlets.pop(number, None)
        if inlet is not None:
            self._inlets.pop(inlet.info.scoid, None)
            self._disconnected(inlet)
