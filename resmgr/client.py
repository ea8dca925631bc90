"""Message passing for ordinary programs: blocking calls, no Trio, start-up in milliseconds.

`Client` is a program's link to the daemon of its machine, and makes the program a part of the node: it sends to any channel, at home or on
another node, and it can be a server with channels of its own (`resmgr.server`, loaded when the first channel is made).

    with Client("/run/io-pkt/socket") as client:
        connection = client.connect(0, pid, chid)
        status, data, _ = connection.send(b"hello", reply_len=100, timeout=2.0)

Other programs of the node are reached over a direct link, which the daemon makes at the first send to each (docs/protocol/direct.md).

Calls block in one place, `Client.pump`: while one waits, everything else that arrives is handled (a server's READ of a message under way,
other answers, messages for channels). Several sends may be under way: `submit` returns a `Send`; `fileno` and `pump(0)` fit a select loop.
A `Client` belongs to one thread.

Waiting. Before it sleeps, a wait looks at the socket for up to `spin` seconds, giving the processor away in between. Whether this pays
depends on where the daemon runs: on two cores it saves 40 µs of wake-ups, on one core it costs 6. So the client measures both ways from
time to time and keeps to the better one (`resmgr.looking`).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from resmgr import directproto as proto
from resmgr import message as wire
from resmgr.clientconnection import UNBLOCK_GRACE
from resmgr.clientconnection import Connection as Connection
from resmgr.clientconnection import Reply as Reply
from resmgr.clientconnection import Send as Send
from resmgr.clientlink import CLOEXEC, NOW, OUTPUT_HIGH, OUTPUT_MAX, Arrived, Link, join
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, ResmgrError
from resmgr.exchange import exchange, next_plain
from resmgr.ids import FIRST_PART_DEFAULT, PID_SYSTEM, PRIORITY_DEFAULT, PRIORITY_MAX, PULSE_CODE_MAX
from resmgr.looking import Looking

if TYPE_CHECKING:
    from resmgr.server import Channel, Service

SPIN_DEFAULT = 100e-6
CARRIERS: Final = (wire.SEND, wire.REPLY, proto.LINKED, proto.ACCEPT)
"""Kinds with which descriptors come; from others they are closed."""
DAEMON_LOOK = struct.pack("@ll", 0, 500_000)
"""After so long (a timeval) a program that waits at a direct link looks at its daemon's socket too."""
GATHER_MAX = 64


class Client:
    """One link to the daemon whose socket is at *path*. OSError if there is none; ResmgrError(EPROTO) if it speaks another version.

    Any call raises ResmgrError(ENOTCONN) once the daemon is gone, and sends that were under way end with that.
    """

    exchange = exchange
    next_plain = next_plain

    def _set_up(self, sock: socket.socket, spin: float) -> None:
        self.spin = spin
        self.waiting = Looking()
        self.arrived: Arrived = deque()
        self.sent = 0.0
        self._ways: dict[tuple[int, int], Link] = {}
        self._next_request = 0
        self.dropped = 0
        """Messages over direct links that did not parse."""
        self._connections: dict[int, Connection] = {}
        self.sends: dict[int, Send] = {}
        self._next_connection = 0
        self.next_txn = 0
        self._gone = False
        self.working_at: int | None = None
        """Priority of what a server of this program received last: what it sends now, it sends for that client."""
        self.service: Service | None = None
        self.pid = 0
        """The pid under which other programs of the node reach this one's channels."""
        self.first_chid = 0
        self.node = ""
        self.daemon = self.last = Link(sock, self.arrived, direct=False)
        """The link to the daemon; and the one that was used last, where the next message is expected."""
        self.epoll = select.epoll()
        self.links = {self.daemon.fd: self.daemon}

    def __init__(
        self, path: str | bytes | os.PathLike[str], *, spin: float = SPIN_DEFAULT, timeout: float = 5.0, direct: bool = True
    ) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._set_up(sock, spin)
        try:
            sock.settimeout(timeout)
            join(sock, os.fspath(path), timeout)
            self.epoll.register(self.daemon.fd, select.EPOLLIN)
            if self.daemon.read(CLOEXEC) <= 0 or not self.arrived:
                raise ResmgrError(errno.ENOTCONN, "the daemon closed the connection at once: too many clients, or not a daemon of ours")
            sock.settimeout(None)
            hello = self.arrived.popleft()[1] or b""
            version, self.pid, self.first_chid, self.node = wire.parse_hello(hello)
            if version != wire.VERSION:
                raise ResmgrError(errno.EPROTO, f"the daemon speaks version {version} of the message protocol, this program {wire.VERSION}")
            self.makes_direct = direct and bool(hello[1] & proto.BROKERS)
        except BadMessage as error:
            self._let_go_of_all()
            raise ResmgrError(errno.EPROTO, f"not a daemon of ours: {error}") from None
        except BaseException:
            self._let_go_of_all()
            raise

    @classmethod
    def resume(cls, descriptor: int, hello: bytes, used: int) -> Client:
        """Go on with a socket on which a program has begun by itself, from now on the client's. *hello* is what the daemon said first.
        Sends up to the number *used* were made, none is under way; the first connection that `connect` makes is theirs.
        """
        client = cls.__new__(cls)
        sock = socket.socket(fileno=descriptor)
        sock.settimeout(None)
        client._set_up(sock, SPIN_DEFAULT)
        client.epoll.register(client.daemon.fd, select.EPOLLIN)
        _, client.pid, client.first_chid, client.node = wire.parse_hello(hello)
        client.makes_direct = bool(hello[1] & proto.BROKERS)
        client._next_connection, client.next_txn = used - 1, used
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the node: the daemon unblocks and detaches everything of ours. Sends under way end with ENOTCONN."""
        for link in self.links.values():
            link.flush(UNBLOCK_GRACE)
        self._lost(farewell=False)

    def fileno(self) -> int:
        """Readable when `pump(0)` has something to do."""
        return self.epoll.fileno()

    def connect(self, nd: int, pid: int, chid: int, *, priority: int | None = None) -> Connection:
        """Attach to a channel (ConnectAttach). `nd` 0 is this node. *priority*: of what is sent on it; None: that of the client for whom a
        server of this program works, or PRIORITY_DEFAULT.
        """
        self._next_connection += 1
        own = PRIORITY_DEFAULT if priority is None else max(0, min(priority, PRIORITY_MAX))
        connection = Connection(self, self._next_connection, nd, pid, chid, own)
        connection.inherits = priority is None
        self._connections[connection.number] = connection
        return connection

    def channel(
        self, *, first_part: int = FIRST_PART_DEFAULT, remote: bool = True, unblock: bool = False, coid_death: bool = False
    ) -> Channel:
        """Create a channel (ChannelCreate). See `resmgr.server.Channel`."""
        return self._server().channel(first_part, remote, unblock, coid_death)

    def _server(self) -> Service:
        if self.service is None:
            from resmgr.server import Service

            self.service = Service(self)
        return self.service

    def start(
        self,
        connection: Connection,
        parts: Sequence[Buffer],
        reply_len: int,
        descriptors: Sequence[int],
        done: Callable[[Send], None] | None,
        priority: int | None = None,
    ) -> Send:
        """See `Connection.submit`."""
        if not 0 <= reply_len <= wire.ID_MAX:
            raise ResmgrError(errno.EMSGSIZE)
        if len(descriptors) > wire.DESCRIPTORS_MAX:
            raise ResmgrError(errno.ENOTSUP if connection.nd else errno.EINVAL)
        data: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        txn = self.next_txn = self.next_txn + 1 & wire.ID_MAX
        while txn in self.sends:
            txn = self.next_txn = self.next_txn + 1 & wire.ID_MAX
        send = Send(connection, txn, data, reply_len, done)
        if self._gone:
            raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
        if connection.closed or connection.dead:
            send.finish(-errno.EBADF, b"", ())
            return send
        link = connection.link or self._route(connection)
        if link.queued > OUTPUT_HIGH:
            send.finish(-errno.EAGAIN, b"", ())
            return send
        first = data if len(data) <= connection.first_part else memoryview(data)[: connection.first_part]
        flags = 0 if connection.connected else wire.CONNECT
        if priority is not None:
            priority = max(0, min(priority, PRIORITY_MAX))
        else:
            priority = self.working_at if connection.inherits and self.working_at is not None else connection.priority
        head = wire.SEND_HEADER.pack(wire.SEND, flags, priority, len(descriptors), txn, connection.number, reply_len, len(data))
        if flags:
            head += _block(connection)
        self.sends[txn] = send
        connection.sends += 1
        try:
            self.transmit((head, first), descriptors, link)
        except BaseException:
            if send.finished:  # the daemon is gone, and the send was told with all the others
                return send
            del self.sends[txn]
            connection.sends -= 1
            raise
        return send

    def send_pulse(self, connection: Connection, code: int, value: int, priority: int) -> None:
        """See `Connection.pulse`."""
        if not 0 <= code <= PULSE_CODE_MAX or not -(1 << 63) <= value < 1 << 63 or not 0 <= priority <= PRIORITY_MAX:
            raise ResmgrError(errno.EINVAL)
        if connection.closed or connection.dead:
            raise ResmgrError(errno.EBADF)
        link = connection.link or self._route(connection)
        if link.queued > OUTPUT_HIGH:
            raise ResmgrError(errno.EAGAIN)
        flags = 0 if connection.connected else wire.CONNECT
        head = wire.PULSE_HEADER.pack(wire.PULSE, flags, priority, 0, connection.number, code, value)
        self.transmit((head + _block(connection),) if flags else (head,), (), link)

    def detach(self, connection: Connection) -> None:
        """See `Connection.close`."""
        if connection.closed:
            return
        connection.closed = True
        connection.events = None
        for send in [send for send in self.sends.values() if send.connection is connection]:
            if not self._gone:
                send.unblock()
            if not send.finished:
                send.finish(-errno.EBADF, b"", ())
        self._end_if_quiet(connection)

    def wait_for(self, send: Send, timeout: float | None) -> None:
        """Wait until *send* has finished. After *timeout* seconds it is unblocked, and an EINTR becomes ETIMEDOUT."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not send.finished:
                if deadline is None:
                    self.pump(None)
                else:
                    left = deadline - time.monotonic()
                    if left > 0:
                        self.pump(left)
                    else:
                        deadline = None
                        send.unblock()
        except KeyboardInterrupt:
            send.let_go()
            raise
        if send.unblocked and timeout is not None and send.status == -errno.EINTR:
            send.status = -errno.ETIMEDOUT

    def pump(self, timeout: float | None) -> bool:
        """Handle what has arrived; wait for something for up to *timeout* seconds (None: for ever). False if nothing came.

        Callbacks (`done`, `on_death`) run from here.
        """
        arrived = self.arrived
        if not arrived and not self._receive(timeout):
            return False
        while arrived:
            link, view, descriptors = arrived.popleft()
            if view is None:
                if not link.direct:
                    self._lost()
                    raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
                self.end(link)
                continue
            try:
                if not len(view):
                    raise BadMessage("empty")
                if descriptors and (link.gone or view[0] not in CARRIERS):
                    link.discard(descriptors)
                    descriptors = ()
                if not link.gone:
                    self._handle(link, view, descriptors)
            except BadMessage as error:
                link.discard(descriptors)
                if not link.direct:
                    self._lost()
                    raise ResmgrError(errno.EPROTO, f"the daemon sent what does not parse: {error}") from None
                self.dropped += 1
        return True

    def transmit(self, parts: Sequence[Buffer], descriptors: Sequence[int] = (), link: Link | None = None) -> None:
        """Write one message (used by this and `resmgr.server`); to the daemon if not said otherwise.

        To the daemon: reads while the socket is full, for the daemon may wait for just that. Over a direct link: what the other end does
        not take soon waits, and goes when it does.
        """
        if self._gone:
            raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
        self.sent = time.monotonic()
        if link is not None and link.direct:
            if link.gone:
                return
            self.last = link
            waited = link.queued
            link.write_or_queue(parts, descriptors)
            if link.queued > OUTPUT_MAX:
                self.end(link)
            elif link.queued != waited:
                self.watch(link)
            return
        daemon = self.last = self.daemon
        for datagram in daemon.datagrams(parts):
            while True:
                try:
                    daemon.write(datagram, descriptors)
                    break
                except BlockingIOError:
                    self._read_until_writable()
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                        raise
                    self._lost()
                    raise ResmgrError(errno.ENOTCONN, "the daemon is gone") from None
            descriptors = ()

    def _read_until_writable(self) -> None:
        """What arrives meanwhile is kept for the next `pump`: handling it here could need to write in turn."""
        poll = select.poll()
        poll.register(self.daemon.fd, select.POLLIN | select.POLLOUT)
        ((_, events),) = poll.poll()
        if events & select.POLLIN:
            self._read(self.daemon, NOW)

    def _read(self, link: Link, flags: int) -> bool:
        """One datagram of *link*. False if there was none."""
        try:
            got = link.read(flags)
        except BadMessage as error:
            if link.direct:
                got = -1
            else:
                self._lost()
                raise ResmgrError(errno.EPROTO, f"the daemon sent what does not parse: {error}") from None
        if got > 0:
            self.last = link
        elif got < 0:
            if not link.direct:
                self._lost()
                raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
            self.arrived.append((link, None, ()))
            return True
        return got > 0

    def _receive(self, timeout: float | None) -> bool:
        """What comes next, after at most *timeout* seconds. The sockets are blocking ones: each call says whether it may block."""
        if self._gone:
            raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
        if timeout == 0:
            return self._read_ready(0)
        # Counted from the sending: on one core the answer may be here before we are.
        began = self.sent or time.monotonic()
        self.sent = 0.0
        looked = bool(self.spin) and self.waiting.look()
        found = looked and self._look(time.monotonic() + self.spin)
        if not found:
            found = self._read(self.daemon, CLOEXEC) if timeout is None and len(self.links) == 1 else self._read_ready(timeout)
        if self.waiting.timing and found:
            self.waiting.took(looked, time.monotonic() - began)
        return found

    def gather(self) -> None:
        """Take in what has arrived on all links, so that a server chooses among all of it. Stops at who goes on writing."""
        for _ in range(GATHER_MAX):
            if not self.pump(0):
                return

    def _read_ready(self, timeout: float | None) -> bool:
        """A datagram of each link that has one; waits for the first. What waits to be written goes meanwhile."""
        found = False
        for fd, events in self.epoll.poll(timeout):
            link = self.links.get(fd)
            if link is None:
                continue
            if events & select.EPOLLOUT:
                link.flush()
                self.watch(link)
            if events & ~select.EPOLLOUT:
                found |= self._read(link, NOW)
        return found

    def watch(self, link: Link) -> None:
        reads = select.EPOLLIN if link.queued <= OUTPUT_HIGH else 0
        self.epoll.modify(link.fd, reads | (select.EPOLLOUT if link.queued else 0))

    def _look(self, until: float) -> bool:
        link = self.last
        while True:
            if self._read(link, NOW):
                return True
            if time.monotonic() >= until:
                return False
            os.sched_yield()

    def _route(self, connection: Connection) -> Link:
        """The way of a connection that has not sent yet, from now on."""
        link: Link | None = None
        place = connection.pid, connection.chid >> proto.CHID_BITS
        if self.makes_direct and not connection.nd and connection.pid != PID_SYSTEM and not self._gone:
            link = self._ways.get(place)
            if link is None and (len(self._ways) < proto.LINKS_PER_CLIENT or self._make_room()):
                link = self._ask(place, connection.chid)
        connection.link = link or self.daemon
        return connection.link

    def _make_room(self) -> bool:
        """Close one direct link that has no connections."""
        used = {connection.link for connection in self._connections.values()}
        for link in self._ways.values():
            if link not in used:
                self.end(link)
                return True
        return False

    def _ask(self, place: tuple[int, int], chid: int) -> Link | None:
        """Have the daemon make a direct link, which it does or refuses at once; what else it says is kept for the next `pump`."""
        self._next_request = request = self._next_request + 1 & wire.ID_MAX
        seen = len(self.arrived)
        self.transmit((proto.pack_direct(request, place[0], chid),))
        while True:
            for number in range(seen, len(self.arrived)):
                link, view, descriptors = self.arrived[number]
                if link is self.daemon and view is not None and view[0] == proto.LINKED:
                    answered, status = proto.parse_linked(view)
                    if answered == request:
                        del self.arrived[number]
                        if status or len(descriptors) != 1:
                            return None
                        way = self._ways[place] = self.adopt(descriptors[0])
                        way.number, way.place = request, place
                        return way
            seen = len(self.arrived)
            self._read(self.daemon, CLOEXEC)

    def adopt(self, fd: int) -> Link:
        """Our end of a direct link, from the daemon."""
        link = Link(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd), self.arrived, direct=True)
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, DAEMON_LOOK)
        self.links[link.fd] = link
        self.epoll.register(link.fd, select.EPOLLIN)
        return link

    def end(self, link: Link, code: int = errno.ESRCH, *, farewell: bool = False) -> None:
        """A direct link has ended: its server is gone, and its client."""
        if link.gone:
            return
        self.epoll.unregister(link.fd)
        del self.links[link.fd]
        if self.last is link:
            self.last = self.daemon
        link.close(farewell)
        if link.place is not None:
            del self._ways[link.place]
            for txn, send in [(txn, send) for txn, send in self.sends.items() if send.connection.link is link]:
                del self.sends[txn]
                send.connection.sends -= 1
                if not send.finished:
                    send.finish(-code, b"", ())
            for connection in [connection for connection in self._connections.values() if connection.link is link]:
                connection.dead = True
                connection.events = None
                connection.connected = False
                self._end_if_quiet(connection)
        elif self.service is not None:
            self.service.end(link)
            if not self._gone:
                self.transmit((proto.pack_bare(proto.UNLINK, link.number),))

    def _handle(self, link: Link, view: memoryview, descriptors: tuple[int, ...]) -> None:
        kind = view[0]
        if kind == wire.REPLY:
            flags, count, txn, first_part, status, data = wire.parse_reply(view)
            if count > len(descriptors) and status >= 0:
                # The kernel drops those for which there is no room.
                status, data = -errno.EMFILE, data[:0]
            send = self.sends.get(txn)
            if send is None or send.connection.link is not link:
                link.discard(descriptors)
                return
            del self.sends[txn]
            connection = send.connection
            connection.sends -= 1
            if flags:
                connection.connected = True
                connection.first_part = min(first_part, wire.CHUNK_MAX)
            if send.finished or status < 0:
                link.discard(descriptors)
                descriptors = ()
            if not send.finished:
                send.finish(status, data, descriptors)
            if connection.closed or connection.dead:
                self._end_if_quiet(connection)
        elif kind == wire.READ:
            txn, number, length, offset = wire.parse_read(view)
            send = self.sends.get(txn)
            if send is not None and send.connection.link is link:
                data = memoryview(send.data)[offset : offset + length]
                status = -errno.ESRCH if send.finished else len(data)
                head = wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, send.connection.priority, 0, txn, number, status)
                self.transmit((head, data) if status > 0 else (head,), (), link)
        elif kind == wire.WRITE:
            txn, offset, data = wire.parse_write(view)
            send = self.sends.get(txn)
            if send is not None and send.connection.link is link and not send.finished:
                send.push(offset, data)
        elif kind == wire.DEATH:
            connection_ = self._connections.get(wire.parse_bare(view))
            if connection_ is not None and connection_.link is link:
                connection_.dead = True
                connection_.events = None
                connection_.connected = False
                self._end_if_quiet(connection_)
        elif kind == wire.EVENT:
            number, handle = wire.parse_event(view)
            target = self._connections.get(number)
            if target is not None and target.link is link:
                self._server().delivered(target, handle)
        elif kind == proto.UNLINK:
            self._on_unlink(link, view)
        elif link.place is not None:
            raise BadMessage("a server sends over its client's link")
        else:
            self._server().handle(link, kind, view, descriptors)

    def _on_unlink(self, link: Link, view: memoryview) -> None:
        number = wire.parse_bare(view)
        if not link.direct:
            way = view[1] == proto.TO_CLIENT
            for one in list(self.links.values()):
                if one.direct and one.number == number and (one.place is not None) == way:
                    one.drain()
        elif link.place is not None and number == errno.ENOTCONN:
            self.end(link, number)  # its daemon, which is ours, is gone; we hear it ourselves soon

    def _end_if_quiet(self, connection: Connection) -> None:
        """As `resmgr.sending.SendingSide`: DETACH only after the last answer."""
        if self._gone or connection.sends or self._connections.pop(connection.number, None) is None:
            return
        if connection.link is not None and (not connection.dead or connection.connected):
            self.transmit((wire.HEADER.pack(wire.DETACH, 0, connection.priority, 0, connection.number),), (), connection.link)
        if connection.dead:
            connection.died()

    def _lost(self, *, farewell: bool = True) -> None:
        """The daemon is gone, or we leave."""
        if self._gone:
            return
        self._gone = True
        for link in list(self.links.values()):
            if link.direct:
                self.end(link, errno.ENOTCONN, farewell=farewell and link.place is None)
        self._let_go_of_all()
        sends, self.sends = list(self.sends.values()), {}
        for send in sends:
            if not send.finished:
                send.finish(-errno.ENOTCONN, b"", ())
        connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.dead = True
            connection.events = None
        if self.service is not None:
            self.service.lost()
        for connection in connections:
            if farewell:
                connection.died()

    def _let_go_of_all(self) -> None:
        self.daemon.close()
        self.epoll.close()
        while self.arrived:
            link, _, descriptors = self.arrived.popleft()
            link.discard(descriptors)


def _block(connection: Connection) -> bytes:
    """Who we are is filled in by the daemon, from the socket."""
    return wire.pack_block(wire.ConnectBlock(connection.nd, connection.pid, connection.chid, 0, 0, 0))
