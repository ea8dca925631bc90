"""The half of a `Peer` that brings messages of the other side's clients to servers here, or forwards them. See `resmgr.peer`."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs

from resmgr import message as wire
from resmgr.carrier import Link
from resmgr.channel import (
    FIRST_PART_DEFAULT,
    ND_LOCAL,
    PID_SYSTEM,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    Channel,
    ClientInfo,
    Connection,
    Credentials,
    Descriptors,
    Nd,
    Pending,
    ReadDone,
)
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError, errno_of
from resmgr.ids import CHIDS_DAEMONS, PULSE_CODE_MAX
from resmgr.sending import Outlet
from resmgr.users import LookingUp

PENDING_MAX: Final = 4096
"""Messages of one peer that servers hold at a time; more get EAGAIN. Stops a peer from filling memory with sends it never finishes."""
CONNECTIONS_MAX: Final = 16384
"""Connections of one peer; more get EAGAIN. Stops a peer from filling memory with connections."""
HELD_MAX: Final = 64 << 20
"""Bytes of first parts of one peer that are held at a time; more get EAGAIN. Stops a peer from filling memory with large sends."""
PULL_WINDOW: Final = 4
"""READs of one `Message.read` that are under way at a time."""

Authorize = Callable[[ClientInfo, int, int], int | ClientInfo]
"""`(client, pid, chid) -> errno or 0`: may this client connect to this channel? Asked once per connection; `scoid` is not yet known. What
raises LookingUp is asked again later."""


@attrs.frozen
class Limits:
    """Caps on what the other side may occupy here; one user of it may occupy three quarters of each, so that no one user shuts the others
    out."""

    pending: int = PENDING_MAX
    connections: int = CONNECTIONS_MAX
    held: int = HELD_MAX

    def of_user(self) -> Limits:
        return Limits(self.pending - self.pending // 4, self.connections - self.connections // 4, self.held - self.held // 4)


class Occupied:
    """What one user of the other side occupies: connections, messages that servers hold, bytes of them."""

    __slots__ = ("connections", "held", "pending")

    def __init__(self) -> None:
        self.connections = 0
        self.pending = 0
        self.held = 0


class Inlet:
    """A connection of a client on the other side to a channel that we serve or forward to."""

    __slots__ = ("block", "channel", "connection", "left", "number", "unanswered", "user")

    def __init__(self, number: int, block: wire.ConnectBlock, connection: Connection, channel: Channel | None, user: Occupied) -> None:
        self.user = user
        self.channel = channel
        """None: forwarded. A channel that dies takes its inlets along, so what is here is alive."""
        self.number = number
        self.block = block
        self.connection = connection
        self.left = False
        """The link is gone."""
        self.unanswered = 0
        """Then: messages that the server here has not answered."""


class Pull:
    """One `Message.read` that has to ask the client: several READs under way, put together in order."""

    __slots__ = ("arrived", "asked", "chunks", "done", "end", "reads")

    def __init__(self, asked: int, end: int, head: Buffer, done: ReadDone) -> None:
        self.asked = asked
        self.end = end
        self.done = done
        self.reads: deque[tuple[int, int]] = deque()
        """Number and length of the READs under way."""
        self.arrived: dict[int, tuple[int, Buffer]] = {}
        self.chunks: list[Buffer] = [head] if len(head) else []

    def finish(self, code: int) -> None:
        """Report what came; *code* if nothing did."""
        if self.chunks:
            whole = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
            self.done(len(whole), whole)
        else:
            self.done(-code, b"")


class Incoming:
    """The answerer of a message that came from the other side."""

    __slots__ = ("data", "inlet", "msglen", "pending", "priority", "pulls", "reply_len", "route", "side", "txn")

    def __init__(self, side: ServingSide, inlet: Inlet, txn: int, data: Buffer, msglen: int, reply_len: int, priority: int) -> None:
        self.side = side
        self.inlet = inlet
        self.txn = txn
        self.data = data
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority
        self.route = side.link.route
        """How it came; what is sent for it goes the same way."""
        self.pending: Pending | None = None
        self.pulls: dict[int, Pull] | None = None

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        self.side.answered(self, status, parts, descriptors)

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        if self.side.link.closed:
            done(-errno.ESRCH, b"")
            return
        end = min(offset + length, self.msglen)
        here = memoryview(self.data)[offset:end]
        start = offset + len(here)
        if start >= end:
            done(len(here), here)
            return
        self.side.pull(self, Pull(start, end, here, done))

    def push(self, offset: int, data: Buffer) -> None:
        if not self.side.link.closed:
            self.side.push(self, offset, data)


class ServingSide:
    """Connections from there to here, and the messages that servers hold."""

    def __init__(self, link: Link, believes: bool, routes: bool, authorize: Authorize, limits: Limits, final: bool = False) -> None:
        self.link = link
        self._kernel = link.kernel
        self._send = link.send
        self._believes = believes
        self._final = final or believes
        self._routes = routes
        self._authorize = authorize
        self._limits = limits
        # A process that does not read its answers is not read from (`transport.unix`). A node is, so it is refused.
        self._congested = link.congested if link.nd != ND_LOCAL else None
        self.served = 0
        self.refused = 0
        self.held = 0
        self.inlets: dict[int, Inlet] = {}
        self._users: dict[tuple[int, int], Occupied] = {}
        """By node and uid, of those that have connections."""
        # What a process sends is one user's; and its daemon has shared out what it brings it from others.
        self._share = limits if believes or link.credentials is not None else limits.of_user()
        self.incoming: dict[int, Incoming] = {}
        self._leaving: dict[Incoming, None] = {}
        """Of a link that is gone: what servers here have not answered yet."""
        self._next_read = 0
        self._parked: dict[int, tuple[int, int]] = {}
        """SENDs that wait for the account of their client: priority and bytes held, by transaction."""
        self._parked_pulses: dict[int, int] = {}
        """The same: how many, by connection."""

    def down(self) -> None:
        """The link is gone: every server is asked to let go, and told of the disconnect."""
        incoming, self.incoming = self.incoming, {}
        inlets, self.inlets = self.inlets, {}
        self._users = {}
        self.held = 0
        self._parked.clear()
        self._parked_pulses.clear()
        for message in incoming.values():
            if message.inlet.channel is not None:
                self._leaving[message] = None
                message.inlet.unanswered += 1
        for message in incoming.values():
            self._end_pulls(message)
            if message.pending is not None:
                message.pending.unblock()
        for inlet in inlets.values():
            inlet.connection.on_death = None
            if not inlet.unanswered:
                self._kernel.detach(inlet.connection)
            inlet.left = True

    def _answered_late(self, message: Incoming) -> None:
        """A server here has answered a message of a link that is gone. With the last of a connection it is told of the disconnect."""
        if message in self._leaving:
            del self._leaving[message]
            inlet = message.inlet
            inlet.unanswered -= 1
            if inlet.left and not inlet.unanswered:
                self._kernel.detach(inlet.connection)

    def on_send(self, view: Buffer, descriptors: Descriptors) -> None:
        _, priority, count, txn, number, reply_len, msglen, block, data = wire.parse_send(view)
        if txn in self.incoming or txn in self._parked:
            raise BadMessage("SEND of a transaction under way")
        if count < len(descriptors):
            raise BadMessage("SEND with more descriptors than it says")
        if count > len(descriptors):
            # The kernel drops those for which this process has no room.
            self._refuse(txn, errno.EMFILE, 0, priority)
            return
        inlet = self.inlets.get(number)
        if inlet is None:
            try:
                opened = self._open(number, block)
            except LookingUp as looking:
                self._park(looking, txn, priority, view, descriptors)
                return
            if isinstance(opened, int):
                self._refuse(txn, opened, 0, priority)
                return
            inlet = opened
        elif block is not None and block != inlet.block:
            raise BadMessage("SEND connects a connection anew")
        user = inlet.user
        if (
            len(self.incoming) >= self._limits.pending
            or self.held + len(data) > self._limits.held
            or user.pending >= self._share.pending
            or user.held + len(data) > self._share.held
            or (self._congested is not None and self._congested())
        ):
            self._refuse(txn, errno.EAGAIN, wire.CONNECTED, priority)
            return
        if priority > PRIORITY_MAX:
            priority = PRIORITY_MAX
        message = Incoming(self, inlet, txn, data, msglen, reply_len, priority)
        self.incoming[txn] = message
        self.held += len(data)
        user.pending += 1
        user.held += len(data)
        self.served += 1
        channel = inlet.channel
        if channel is not None:
            info = inlet.connection.info
            message.pending = self._kernel.deliver(channel, info, data, msglen, reply_len, priority, message, descriptors)
        else:
            message.pending = self._kernel.relay(inlet.connection, data, msglen, reply_len, priority, message, descriptors)
        if self.link.closed and message.pending is not None:
            message.pending.unblock()

    def _park(self, looking: LookingUp, txn: int, priority: int, view: Buffer, descriptors: Descriptors) -> None:
        """Take a SEND again when the account of its client is known."""
        size, route = len(view), self.link.route
        if len(self.incoming) + len(self._parked) >= self._limits.pending or self.held + size > self._limits.held:
            self._refuse(txn, errno.EAGAIN, 0, priority)
            return
        self._parked[txn] = priority, size
        self.held += size

        def again() -> None:
            if self._unpark(txn):
                self.link.route = route
                self._take_again(self.on_send, view, descriptors)

        looking.then(again)

    def _unpark(self, txn: int) -> bool:
        parked = self._parked.pop(txn, None)
        if parked is None:
            return False
        self.held -= parked[1]
        return True

    def _park_pulse(self, looking: LookingUp, number: int, view: Buffer) -> None:
        if sum(self._parked_pulses.values()) >= self._limits.pending:
            self.link.dropped["pulse before its account is known"] += 1
            return
        self._parked_pulses[number] = self._parked_pulses.get(number, 0) + 1

        def again() -> None:
            if number in self._parked_pulses:
                self._parked_pulses[number] -= 1
                if not self._parked_pulses[number]:
                    del self._parked_pulses[number]
                self._take_again(self.on_pulse, view, ())

        looking.then(again)

    def _take_again(self, handle: Callable[[Buffer, Descriptors], None], view: Buffer, descriptors: Descriptors) -> None:
        try:
            handle(view, descriptors)
        except BadMessage as error:
            self.link.dropped[str(error)] += 1

    def _open(self, number: int, block: wire.ConnectBlock | None) -> Inlet | int:
        """A new connection of the other side's, or the errno of the refusal."""
        if block is None:
            return errno.EBADF
        if len(self.inlets) >= self._limits.connections:
            return errno.EAGAIN
        nd = Nd(block.nd)
        if nd != ND_LOCAL and not self._routes:
            return errno.EHOSTUNREACH
        if nd != ND_LOCAL and block.pid == PID_SYSTEM and block.chid in CHIDS_DAEMONS:
            return errno.EPERM  # there our node's daemon is heard, and a process of it is not the daemon
        info = self._client(block)
        channel = self._kernel.find_channel(block.pid, block.chid) if nd == ND_LOCAL else None
        if channel is not None and info.nd != ND_LOCAL and not channel.remote:
            return errno.EBADF
        if channel is None and self._final:
            return errno.EBADF  # a process is the end of the way: what its daemon sent it does not go back
        try:
            allowed = self._authorize(info, block.pid, block.chid) if nd == ND_LOCAL else 0
        except LookingUp:
            raise
        except ResmgrError as error:
            return errno_of(error)
        if isinstance(allowed, ClientInfo):
            info = allowed
        elif allowed:
            return allowed
        key = info.nd, info.credentials.uid
        user = self._users.get(key)
        if user is None:
            user = Occupied()
        elif user.connections >= self._share.connections:
            return errno.EAGAIN
        connection = self._kernel.connect(nd, block.pid, block.chid, info.credentials, priority=PRIORITY_DEFAULT)
        if channel is None:
            remote = self._kernel.carrier(connection)
            if isinstance(remote, int):
                connection.close()
                return remote
        connection.info = attrs.evolve(info, scoid=connection.coid)
        inlet = Inlet(number, block, connection, channel, user)
        user.connections += 1
        self._users[key] = user
        connection.used = True
        connection.own = False
        connection.on_death = partial(self._channel_died, inlet)
        connection.on_event = partial(self._event, inlet)
        self.inlets[number] = inlet
        return inlet

    def _client(self, block: wire.ConnectBlock) -> ClientInfo:
        if self.link.credentials is not None:
            return ClientInfo(ND_LOCAL, "", frozenset(), self.link.credentials, 0)
        claimed = Credentials(block.uid, block.gid, block.groups, block.client_pid)
        if self._believes:
            return ClientInfo(Nd(block.client_nd), block.node or "", frozenset(block.roles), claimed, 0)
        return ClientInfo(self.link.nd, self.link.node, self.link.roles, claimed, 0)

    def _refuse(self, txn: int, code: int, flags: int, priority: int) -> None:
        self.refused += 1
        head = wire.REPLY_HEADER.pack(wire.REPLY, flags, 0, 0, txn, FIRST_PART_DEFAULT, -code)
        self._send(txn << 2 | wire.STREAM_ANSWER, (head,), min(priority, PRIORITY_MAX), self.link.route)

    def _channel_died(self, inlet: Inlet, connection: Connection) -> None:
        if self.inlets.pop(inlet.number, None) is None or self.link.closed:
            return
        self._leaves(inlet)
        connection.close()
        head = wire.HEADER.pack(wire.DEATH, 0, PRIORITY_DEFAULT, 0, inlet.number)
        self._send(inlet.number << 2 | wire.STREAM_DEATH, (head,), PRIORITY_DEFAULT)

    def _event(self, inlet: Inlet, handle: int) -> int:
        """A server delivers an event to a client on the other side. Whether that has registered it is known there."""
        if self.link.closed or self.inlets.get(inlet.number) is not inlet:
            return -errno.ESRCH
        if self.link.congested():
            return -errno.EAGAIN
        priority = inlet.connection.priority
        self._send(inlet.number << 2 | wire.STREAM_DEATH, (wire.pack_event(inlet.number, handle, priority),), priority)
        return 0

    def on_pulse(self, view: Buffer, descriptors: Descriptors) -> None:
        priority, number, code, value, block = wire.parse_pulse(view)
        if not 0 <= code <= PULSE_CODE_MAX:
            raise BadMessage("PULSE with a system code")
        inlet = self.inlets.get(number)
        if inlet is None:
            try:
                opened = self._open(number, block)
            except LookingUp as looking:
                self._park_pulse(looking, number, view)
                return
            if isinstance(opened, int):
                self.refused += 1
                head = wire.HEADER.pack(wire.DEATH, 0, PRIORITY_DEFAULT, 0, number)
                self._send(number << 2 | wire.STREAM_DEATH, (head,), PRIORITY_DEFAULT)
                return
            inlet = opened
        elif block is not None and block != inlet.block:
            raise BadMessage("PULSE connects a connection anew")
        self._kernel.pulse(inlet.connection, code, value, min(priority, PRIORITY_MAX))

    def on_unblock(self, view: Buffer, descriptors: Descriptors) -> None:
        txn = wire.parse_bare(view)
        message = self.incoming.get(txn)
        if message is not None and message.pending is not None:
            message.pending.unblock()
        elif txn in self._parked:
            priority, _ = self._parked[txn]
            self._unpark(txn)
            self._refuse(txn, errno.EINTR, 0, priority)

    def on_detach(self, view: Buffer, descriptors: Descriptors) -> None:
        number = wire.parse_bare(view)
        self._parked_pulses.pop(number, None)
        inlet = self.inlets.pop(number, None)
        if inlet is None:
            return  # it crossed our DEATH
        for message in [message for message in self.incoming.values() if message.inlet is inlet]:
            if message.pending is not None:
                message.pending.unblock()
        inlet.connection.on_death = None
        self._leaves(inlet)
        self._kernel.detach(inlet.connection)

    def _leaves(self, inlet: Inlet) -> None:
        """Its user has one connection less."""
        user = inlet.user
        user.connections -= 1
        if not user.connections:
            info = inlet.connection.info
            self._users.pop((info.nd, info.credentials.uid), None)

    def answered(self, message: Incoming, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        if self.link.closed:
            self._answered_late(message)
            return
        if self.incoming.pop(message.txn, None) is None:
            return
        self.held -= len(message.data)
        user = message.inlet.user
        user.pending -= 1
        user.held -= len(message.data)
        self._end_pulls(message)
        carried = None
        if descriptors and status >= 0:
            carried = self.link.descriptors
            if carried is None or len(descriptors) > wire.DESCRIPTORS_MAX:
                status = -errno.ENOTSUP
        if status < 0:
            parts = ()
        elif parts:
            total = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
            if total > message.reply_len or total > wire.CHUNK_MAX:
                whole = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))[: message.reply_len]
                self.push(message, wire.CHUNK_MAX, whole[wire.CHUNK_MAX :])
                parts = (whole[: wire.CHUNK_MAX],)
        inlet = message.inlet
        flags = wire.CONNECTED if self.inlets.get(inlet.number) is inlet else 0
        head = wire.REPLY_HEADER.pack(
            wire.REPLY, flags, 0, 0 if carried is None else len(descriptors), message.txn, self._grant(inlet), status
        )
        stream = message.txn << 2 | wire.STREAM_ANSWER
        if carried is not None and status >= 0:
            try:
                carried.send_descriptors(stream, (head, *parts), message.priority, descriptors)
            except OSError as error:
                head = wire.REPLY_HEADER.pack(wire.REPLY, flags, 0, 0, message.txn, self._grant(inlet), -(error.errno or errno.EIO))
                self._send(stream, (head,), message.priority, message.route)
        else:
            self._send(stream, (head, *parts), message.priority, message.route)

    def _grant(self, inlet: Inlet) -> int:
        """How much of a message the client may send unasked from now on."""
        if inlet.channel is not None:
            return min(inlet.channel.first_part, wire.CHUNK_MAX)
        outlet = inlet.connection.remote_state
        return outlet.first_part if isinstance(outlet, Outlet) else FIRST_PART_DEFAULT

    def push(self, message: Incoming, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        for start in range(0, len(view), wire.CHUNK_MAX):
            head = wire.WRITE_HEADER.pack(wire.WRITE, 0, message.priority, 0, message.txn, offset + start)
            self._send(message.txn << 2 | wire.STREAM_ANSWER, (head, view[start : start + wire.CHUNK_MAX]), message.priority, message.route)

    def pull(self, message: Incoming, pull: Pull) -> None:
        if message.pulls is None:
            message.pulls = {}
        while pull.asked < pull.end and len(pull.reads) < PULL_WINDOW:
            length = min(wire.PULL_CHUNK, pull.end - pull.asked)
            self._next_read = self._next_read + 1 & wire.ID_MAX
            number = self._next_read
            message.pulls[number] = pull
            pull.reads.append((number, length))
            head = wire.READ_HEADER.pack(wire.READ, 0, message.priority, 0, message.txn, number, length, pull.asked)
            pull.asked += length
            self._send(message.txn << 2 | wire.STREAM_ANSWER, (head,), message.priority, message.route)

    def on_read_data(self, view: Buffer, descriptors: Descriptors) -> None:
        txn, number, status, data = wire.parse_read_data(view)
        message = self.incoming.get(txn)
        pull = None if message is None or message.pulls is None else message.pulls.pop(number, None)
        if message is None or pull is None:
            return  # it crossed our REPLY, or came after an earlier piece that ended the read
        pull.arrived[number] = (status, data)
        while pull.reads:
            first, length = pull.reads[0]
            piece = pull.arrived.pop(first, None)
            if piece is None:
                return
            pull.reads.popleft()
            status, chunk = piece
            if status > length:
                raise BadMessage("READ_DATA is longer than asked")
            if status > 0:
                pull.chunks.append(chunk)
            if status < length:
                self._forget_reads(message, pull)
                pull.finish(max(-status, 0))
                return
        if pull.asked < pull.end:
            self.pull(message, pull)
        else:
            pull.finish(0)

    def _forget_reads(self, message: Incoming, pull: Pull) -> None:
        if message.pulls is not None:
            for number, _ in pull.reads:
                message.pulls.pop(number, None)

    def _end_pulls(self, message: Incoming) -> None:
        if message.pulls:
            pulls, message.pulls = dict.fromkeys(message.pulls.values()), None
            for pull in pulls:
                pull.done(-errno.ESRCH, b"")
