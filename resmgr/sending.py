"""The half of a `Peer` that carries messages of our clients to servers on the other side. See `resmgr.peer`."""

from __future__ import annotations

import errno
from functools import partial
from typing import Final

from resmgr import message as wire
from resmgr.carrier import Link
from resmgr.channel import FIRST_PART_DEFAULT, GONE, ND_LOCAL, PRIORITY_MAX, Answerer, Connection, Descriptors, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.ids import ND_BITS, PULSE_CODE_MAX

READS_MAX: Final = 64
"""READs of one transaction answered at a time; more get EAGAIN. Stops a server from filling our output with one message's copies."""


class Outlet:
    """Our end of a connection to a channel on the other side; it sits in `Connection.remote_state`."""

    __slots__ = ("announced", "connected", "connection", "dead", "first_part", "number", "route", "sends", "side")

    def __init__(self, side: SendingSide, number: int, connection: Connection) -> None:
        self.side = side
        self.number = number
        self.connection = connection
        self.route = 0 if side.local else connection.nd >> ND_BITS or side.default_route
        """How messages of this connection should travel."""
        self.first_part = FIRST_PART_DEFAULT
        self.announced = False
        self.connected = False
        self.dead = False
        self.sends: dict[Outgoing, None] = {}


class Outgoing:
    """A message under way to the other side; its client is behind `answerer`."""

    __slots__ = ("answerer", "msglen", "outlet", "priority", "reading", "reply_len", "txn", "unblocked")

    def __init__(self, outlet: Outlet, txn: int, answerer: Answerer, msglen: int, reply_len: int, priority: int) -> None:
        self.outlet = outlet
        self.txn = txn
        self.answerer = answerer
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority
        self.reading = 0
        self.unblocked = False

    def unblock(self) -> None:
        if self.unblocked:
            return
        self.unblocked = True
        self.outlet.side.unblock(self)

    def abandon(self, code: int) -> None:
        """Tell the client now; the transaction lasts until the other side has answered it."""
        answerer, self.answerer = self.answerer, GONE
        answerer.answer(-code, (), ())


class SendingSide:
    """Connections from here to there, and the messages under way on them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._send = link.send
        self.local = link.nd == ND_LOCAL
        """The other side is a process of this node; descriptors are its to look at."""
        self.default_route = link.default_route
        self.sends = 0
        self.outlets: dict[int, Outlet] = {}
        self.outgoing: dict[int, Outgoing] = {}
        self._next_connection = 0
        self._next_txn = 0

    def down(self, code: int) -> None:
        """The link is gone: every client gets errno *code*, every connection its death."""
        outgoing, self.outgoing = self.outgoing, {}
        outlets, self.outlets = self.outlets, {}
        for outlet in outlets.values():
            outlet.dead = True
            outlet.connection.events = None
            outlet.sends.clear()
        for send in outgoing.values():
            send.abandon(code)
        for outlet in outlets.values():
            outlet.connection.died()

    def let_go(self) -> None:
        """End the sends that wait for the answer to an unblock."""
        for send in [send for send in self.outgoing.values() if send.unblocked]:
            send.abandon(errno.EINTR)

    def routes_changed(self) -> None:
        """`Peer.routes_changed`."""
        for send in [send for send in self.outgoing.values() if send.outlet.route]:
            code = self._link.stuck(send.outlet.route)
            if code and send.unblocked:
                send.abandon(errno.EINTR)
            elif code > 0:
                send.abandon(code)
                send.unblock()

    def relay(
        self,
        connection: Connection,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors = (),
    ) -> Pending | None:
        """`Remote.relay`."""
        outlet = self._outlet(connection)
        code = 0
        if isinstance(outlet, int):
            code = outlet
        elif descriptors and (self._link.descriptors is None or len(descriptors) > wire.DESCRIPTORS_MAX):
            code = errno.ENOTSUP if self._link.descriptors is None else errno.EINVAL
        elif msglen > wire.MSGLEN_MAX or not 0 <= reply_len <= wire.ID_MAX:
            code = errno.EMSGSIZE
        elif self._link.congested():
            code = errno.EAGAIN
        elif outlet.route:
            code = max(self._link.stuck(outlet.route), 0)
        if code or isinstance(outlet, int):
            answerer.answer(-code, (), ())
            return None
        txn = self._new_txn()
        send = Outgoing(outlet, txn, answerer, msglen, reply_len, priority)
        self.outgoing[txn] = send
        outlet.sends[send] = None
        self.sends += 1
        first = data if len(data) <= outlet.first_part else memoryview(data)[: outlet.first_part]
        flags = 0 if outlet.connected else wire.CONNECT
        head = wire.SEND_HEADER.pack(wire.SEND, flags, priority, len(descriptors), txn, outlet.number, reply_len, msglen)
        if flags:
            head += wire.pack_block(self._block(connection))
        if descriptors and self._link.descriptors is not None:
            try:
                self._link.descriptors.send_descriptors(txn << 2, (head, first), priority, descriptors)
            except OSError as error:
                del self.outgoing[txn]
                del outlet.sends[send]
                answerer.answer(-(error.errno or errno.EIO), (), ())
                return None
        else:
            self._send(txn << 2, (head, first), priority, outlet.route)
        return None if send.answerer is GONE else send

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        """`Remote.pulse`."""
        if not 0 <= code <= PULSE_CODE_MAX or not -(1 << 63) <= value < 1 << 63 or not 0 <= priority <= PRIORITY_MAX:
            return -errno.EINVAL
        outlet = self._outlet(connection)
        if isinstance(outlet, int):
            return -outlet
        if self._link.congested():
            return -errno.EAGAIN
        flags = 0 if outlet.connected else wire.CONNECT
        head = wire.PULSE_HEADER.pack(wire.PULSE, flags, priority, 0, outlet.number, code, value)
        if flags:
            head += wire.pack_block(self._block(connection))
        outlet.announced = True
        self._send(outlet.number << 2 | wire.STREAM_CONNECTION, (head,), priority, outlet.route)
        return 0

    def detach(self, connection: Connection) -> None:
        """`Remote.detach`."""
        outlet = connection.remote_state
        if not isinstance(outlet, Outlet) or outlet.side is not self or self._link.closed:
            return
        for send in list(outlet.sends):
            send.abandon(errno.EBADF)
            send.unblock()
        self._end_if_quiet(outlet)

    def unblock(self, send: Outgoing) -> None:
        if self._link.closed or self.outgoing.get(send.txn) is not send:
            return
        self._send(send.txn << 2, (wire.HEADER.pack(wire.UNBLOCK, 0, send.priority, 0, send.txn),), send.priority, send.outlet.route)
        if self._link.suspected or (send.outlet.route and self._link.stuck(send.outlet.route)):
            send.abandon(errno.EINTR)

    def _outlet(self, connection: Connection) -> Outlet | int:
        outlet = connection.remote_state
        if isinstance(outlet, Outlet):
            # A connection dies with the link on which it was made, as a coid dies with its server.
            return errno.EBADF if outlet.dead or outlet.side is not self else outlet
        if self._link.closed:
            return errno.EHOSTDOWN if self._link.nd != ND_LOCAL else errno.EBADF
        self._next_connection += 1
        outlet = Outlet(self, self._next_connection, connection)
        connection.remote_state = outlet
        self.outlets[outlet.number] = outlet
        return outlet

    def _block(self, connection: Connection) -> wire.ConnectBlock:
        who = connection.credentials
        target = 0 if self._link.nd != ND_LOCAL else connection.nd
        if self._link.credentials is None:
            return wire.ConnectBlock(target, connection.pid, connection.chid, who.pid, who.uid, who.gid, who.groups)
        info = connection.info
        return wire.ConnectBlock(
            target, connection.pid, connection.chid, who.pid, who.uid, who.gid, who.groups, info.nd, info.node, tuple(sorted(info.roles))
        )

    def _new_txn(self) -> int:
        txn = self._next_txn = self._next_txn + 1 & wire.ID_MAX
        while txn in self.outgoing:
            txn = self._next_txn = self._next_txn + 1 & wire.ID_MAX
        return txn

    def _end_if_quiet(self, outlet: Outlet) -> None:
        """End a closed or dead connection after its last answer.

        The answers come first because DEATH may have overtaken some that the server gave before it died, and DETACH must not overtake a
        SEND. A SEND may also have come behind the DEATH and made the connection anew over there: then it is detached.
        """
        if outlet.sends or self.outlets.pop(outlet.number, None) is None:
            return
        connection = outlet.connection
        if outlet.announced:
            head = wire.HEADER.pack(wire.DETACH, 0, connection.priority, 0, outlet.number)
            self._send(outlet.number << 2 | wire.STREAM_CONNECTION, (head,), connection.priority, outlet.route)
        if outlet.dead:
            connection.died()

    def on_reply(self, view: Buffer, descriptors: Descriptors) -> None:
        flags, count, txn, first_part, status, data = wire.parse_reply(view)
        if count > len(descriptors) and status >= 0:
            status, data, descriptors = -errno.EMFILE, data[:0], ()  # there was no room for them
        send = self.outgoing.pop(txn, None)
        if send is None:
            raise BadMessage("REPLY to no transaction")
        outlet = send.outlet
        outlet.sends.pop(send, None)
        if flags:
            outlet.connected = outlet.announced = True
            outlet.first_part = min(first_part, wire.CHUNK_MAX)
        answerer, send.answerer = send.answerer, GONE
        answerer.answer(status, (data[: send.reply_len],), descriptors)
        if outlet.dead or outlet.connection.closed:
            self._end_if_quiet(outlet)

    def on_read(self, view: Buffer, descriptors: Descriptors) -> None:
        txn, number, length, offset = wire.parse_read(view)
        send = self.outgoing.get(txn)
        if send is None:
            raise BadMessage("READ of no transaction")
        if send.reading >= READS_MAX:
            self._read_data(send, number, -errno.EAGAIN, b"")
            return
        send.reading += 1
        send.answerer.pull(offset, length, partial(self._pulled, send, number))

    def _pulled(self, send: Outgoing, number: int, status: int, data: Buffer) -> None:
        send.reading -= 1
        if not self._link.closed and self.outgoing.get(send.txn) is send:
            self._read_data(send, number, status, data)

    def _read_data(self, send: Outgoing, number: int, status: int, data: Buffer) -> None:
        head = wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, send.priority, 0, send.txn, number, status)
        self._send(send.txn << 2, (head, data) if status > 0 else (head,), send.priority, send.outlet.route)

    def on_write(self, view: Buffer, descriptors: Descriptors) -> None:
        txn, offset, data = wire.parse_write(view)
        send = self.outgoing.get(txn)
        if send is None:
            raise BadMessage("WRITE to no transaction")
        if offset + len(data) > send.reply_len:
            raise BadMessage("WRITE beyond the reply buffer")
        send.answerer.push(offset, data)

    def on_event(self, view: Buffer, descriptors: Descriptors) -> None:
        number, handle = wire.parse_event(view)
        outlet = self.outlets.get(number)
        if outlet is None or outlet.dead or outlet.connection.closed:
            return  # it crossed our DETACH, or came behind the DEATH
        status = self._link.kernel.event(outlet.connection, handle)
        events = outlet.connection.events
        if status == -errno.EINVAL and events is not None and events.was_registered(handle):
            self._link.dropped["event taken back"] += 1
            return
        if status == -errno.EINVAL:
            raise BadMessage("EVENT that is not registered")
        if status:
            raise BadMessage("EVENT that cannot be passed on")

    def on_death(self, view: Buffer, descriptors: Descriptors) -> None:
        outlet = self.outlets.get(wire.parse_bare(view))
        if outlet is None:
            return  # it crossed our DETACH
        outlet.dead = True
        outlet.connection.events = None
        outlet.announced = False
        self._end_if_quiet(outlet)
