"""Message passing for ordinary programs: blocking calls, no Trio, start-up in milliseconds.

`Client` is a program's link to the daemon of its machine, and makes the program a part of the node: it sends to any channel, at home or on
another node, and it can be a server with channels of its own (`resmgr.server`, loaded when the first channel is made).

    with Client("/run/io-pkt/socket") as client:
        connection = client.connect(0, pid, chid)
        status, data, _ = connection.send(b"hello", reply_len=100, timeout=2.0)

Calls block in one place, `Client.pump`: while one waits, everything else that arrives is handled (a server's READ of a message under way,
other answers, messages for channels). Several sends may be under way: `submit` returns a `Send`; `fileno` and `pump(0)` fit a select loop.
A `Client` belongs to one thread.

Waiting. Before it sleeps, a wait looks at the socket for up to `spin` seconds, giving the processor away in between. Whether this pays
depends on where the daemon runs: on two cores it saves 40 µs of wake-ups, on one core it costs 6. So the client measures both ways from
time to time and keeps to the better one (`resmgr.looking`).
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from resmgr import message as wire
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse, ResmgrError
from resmgr.ids import FIRST_PART_DEFAULT, PRIORITY_DEFAULT, PRIORITY_MAX, PULSE_CODE_MAX
from resmgr.looking import Looking
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, LENGTH_SIZE, Assembler, fragments

if TYPE_CHECKING:
    from resmgr.events import Events
    from resmgr.server import Channel, Service

SPIN_DEFAULT = 100e-6
UNBLOCK_GRACE = 1.0
"""Seconds that an interrupted program (Ctrl-C) waits for the server to let go, before it stops caring."""

_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_DONTWAIT = int(socket.MSG_DONTWAIT)
_NOW = _CLOEXEC | _DONTWAIT
_ANCILLARY = socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * 4)


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
        self.inherits = True
        self.events: Events[Channel] | None = None
        self.on_death: Callable[[Connection], None] | None = None
        """Called, while the program waits for something, when the server is gone."""

    def send(self, *parts: Buffer, reply_len: int = 0, timeout: float | None = None, descriptors: Sequence[int] = ()) -> Reply:
        """Send and wait for the answer (MsgSend). ResmgrError with the server's or the system's errno; ETIMEDOUT after *timeout* seconds,
        when the server has agreed to let go. Ctrl-C unblocks too.
        """
        return self.submit(*parts, reply_len=reply_len, descriptors=descriptors).wait(timeout)

    def submit(
        self, *parts: Buffer, reply_len: int = 0, descriptors: Sequence[int] = (), done: Callable[[Send], None] | None = None
    ) -> Send:
        """Send and go on; wait for the result with `Send.wait`, or take it in *done* while the program waits for something else.

        The parts are borrowed until the send has ended.
        """
        return self.client.start(self, parts, reply_len, descriptors, done)

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
            self.connection.client.transmit((wire.HEADER.pack(wire.UNBLOCK, 0, priority, 0, self.txn),))

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


class Client:
    """One link to the daemon whose socket is at *path*. OSError if there is none; ResmgrError(EPROTO) if it speaks another version.

    Any call raises ResmgrError(ENOTCONN) once the daemon is gone, and sends that were under way end with that.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], *, spin: float = SPIN_DEFAULT, timeout: float = 5.0) -> None:
        self.spin = spin
        self._waiting = Looking()
        self._assembler = Assembler()
        self._descriptors: tuple[int, ...] = ()
        self._arrived: deque[memoryview] = deque()
        self._sent = 0.0
        self._connections: dict[int, Connection] = {}
        self._sends: dict[int, Send] = {}
        self._next_connection = 0
        self._next_txn = 0
        self._gone = False
        self.working_at: int | None = None
        """Priority of what a server of this program received last: what it sends now, it sends for that client."""
        self._service: Service | None = None
        self.pid = 0
        """The pid under which other programs of the node reach this one's channels."""
        self.first_chid = 0
        self.node = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(os.fspath(path))
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            hello = self._assembler.feed(self._socket.recv(DATAGRAM_MAX))
            self._socket.settimeout(None)
            if not hello:
                raise ResmgrError(errno.ENOTCONN, "the daemon closed the connection at once: too many clients, or not a daemon of ours")
            version, self.pid, self.first_chid, self.node = wire.parse_hello(hello[0])
            if version != wire.VERSION:
                raise ResmgrError(errno.EPROTO, f"the daemon speaks version {version} of the message protocol, this program {wire.VERSION}")
        except BadMessage as error:
            self._socket.close()
            raise ResmgrError(errno.EPROTO, f"not a daemon of ours: {error}") from None
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the node: the daemon unblocks and detaches everything of ours. Sends under way end with ENOTCONN."""
        self._lost()

    def fileno(self) -> int:
        """Readable when `pump(0)` has something to do."""
        return self._socket.fileno()

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

    def channel(self, *, first_part: int = FIRST_PART_DEFAULT, remote: bool = True, unblock: bool = False) -> Channel:
        """Create a channel (ChannelCreate). See `resmgr.server.Channel`."""
        return self._server().channel(first_part, remote, unblock)

    def _server(self) -> Service:
        if self._service is None:
            from resmgr.server import Service

            self._service = Service(self)
        return self._service

    def start(
        self,
        connection: Connection,
        parts: Sequence[Buffer],
        reply_len: int,
        descriptors: Sequence[int],
        done: Callable[[Send], None] | None,
    ) -> Send:
        """See `Connection.submit`."""
        if not 0 <= reply_len <= wire.ID_MAX:
            raise ResmgrError(errno.EMSGSIZE)
        if len(descriptors) > wire.DESCRIPTORS_MAX:
            raise ResmgrError(errno.ENOTSUP if connection.nd else errno.EINVAL)
        data: Buffer = parts[0] if len(parts) == 1 else b"".join(parts)
        txn = self._next_txn = self._next_txn + 1 & wire.ID_MAX
        while txn in self._sends:
            txn = self._next_txn = self._next_txn + 1 & wire.ID_MAX
        send = Send(connection, txn, data, reply_len, done)
        if connection.closed or connection.dead:
            send.finish(-errno.EBADF, b"", ())
            return send
        first = data if len(data) <= connection.first_part else memoryview(data)[: connection.first_part]
        flags = 0 if connection.connected else wire.CONNECT
        priority = self.working_at if connection.inherits and self.working_at is not None else connection.priority
        head = wire.SEND_HEADER.pack(wire.SEND, flags, priority, len(descriptors), txn, connection.number, reply_len, len(data))
        if flags:
            head += self._block(connection)
        self._sends[txn] = send
        connection.sends += 1
        self.transmit((head, first), descriptors)
        return send

    def send_pulse(self, connection: Connection, code: int, value: int, priority: int) -> None:
        """See `Connection.pulse`."""
        if not 0 <= code <= PULSE_CODE_MAX or not -(1 << 63) <= value < 1 << 63 or not 0 <= priority <= PRIORITY_MAX:
            raise ResmgrError(errno.EINVAL)
        if connection.closed or connection.dead:
            raise ResmgrError(errno.EBADF)
        flags = 0 if connection.connected else wire.CONNECT
        head = wire.PULSE_HEADER.pack(wire.PULSE, flags, priority, 0, connection.number, code, value)
        self.transmit((head + self._block(connection),) if flags else (head,))

    def detach(self, connection: Connection) -> None:
        """See `Connection.close`."""
        if connection.closed:
            return
        connection.closed = True
        connection.events = None
        for send in [send for send in self._sends.values() if send.connection is connection]:
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
            self._let_go(send)
            raise
        if send.unblocked and timeout is not None and send.status == -errno.EINTR:
            send.status = -errno.ETIMEDOUT

    def pump(self, timeout: float | None) -> bool:
        """Handle what has arrived; wait for something for up to *timeout* seconds (None: for ever). False if nothing came.

        Callbacks (`done`, `on_death`) run from here.
        """
        arrived = self._arrived
        try:
            if not arrived:
                datagram = self._receive(timeout)
                if datagram is None:
                    return False
                arrived.extend(self._assembler.feed(datagram))
            while arrived:
                self._handle(arrived.popleft())
        except BadMessage as error:
            self._lost()
            raise ResmgrError(errno.EPROTO, f"the daemon sent what does not parse: {error}") from None
        return True

    def transmit(self, parts: Sequence[Buffer], descriptors: Sequence[int] = ()) -> None:
        """Write one message (used by this and `resmgr.server`). Reads while the socket is full, for the daemon may wait for just that."""
        if self._gone:
            raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
        self._sent = time.monotonic()
        size = 0
        for part in parts:
            size += len(part)
        if size + LENGTH_SIZE <= DATAGRAM_MAX:
            datagrams: list[list[Buffer]] = [[LENGTH.pack(size), *parts]]
        else:
            datagrams = fragments(parts, size)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        for datagram in datagrams:
            while True:
                try:
                    if ancillary:
                        self._socket.sendmsg(datagram, ancillary, _DONTWAIT)
                    elif size <= 16384:
                        self._socket.send(b"".join(datagram), _DONTWAIT)
                    else:
                        self._socket.sendmsg(datagram, (), _DONTWAIT)
                    break
                except BlockingIOError:
                    self._read_until_writable()
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                        raise
                    self._lost()
                    raise ResmgrError(errno.ENOTCONN, "the daemon is gone") from None
            ancillary = []

    def _read_until_writable(self) -> None:
        """What arrives meanwhile is kept for the next `pump`: handling it here could need to write in turn."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        ((_, events),) = poll.poll()
        if events & select.POLLIN:
            datagram = self._receive(0)
            if datagram is not None:
                self._arrived.extend(self._assembler.feed(datagram))

    def _receive(self, timeout: float | None) -> bytes | None:
        """The next datagram, after at most *timeout* seconds. The socket is a blocking one: each call says whether it may block."""
        receive = self._socket.recvmsg
        looked = False
        began = 0.0
        try:
            if timeout == 0:
                datagram, ancillary, _, _ = receive(DATAGRAM_MAX, _ANCILLARY, _NOW)
            else:
                # Counted from the sending: on one core the daemon may have answered before we get here.
                began = self._sent or time.monotonic()
                self._sent = 0.0
                if self.spin:
                    looked = self._waiting.look()
                found = self._look(time.monotonic() + self.spin) if looked else None
                if found is not None:
                    datagram, ancillary = found
                elif timeout is None or self._poll.poll(timeout * 1000):
                    datagram, ancillary, _, _ = receive(DATAGRAM_MAX, _ANCILLARY, _CLOEXEC)
                else:
                    return None
        except BlockingIOError:
            return None
        except OSError:
            datagram, ancillary = b"", []
        if began and self._waiting.timing:
            self._waiting.took(looked, time.monotonic() - began)
        if not datagram:
            self._lost()
            raise ResmgrError(errno.ENOTCONN, "the daemon is gone")
        if ancillary:
            self._take(ancillary)
        return datagram

    def _look(self, until: float) -> tuple[bytes, list[tuple[int, int, bytes]]] | None:
        receive = self._socket.recvmsg
        while True:
            try:
                return receive(DATAGRAM_MAX, _ANCILLARY, _NOW)[:2]
            except BlockingIOError:
                if time.monotonic() >= until:
                    return None
                os.sched_yield()

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._descriptors = tuple(received)

    def _handle(self, view: memoryview) -> None:
        kind = view[0] if len(view) else 0
        if kind == wire.REPLY:
            flags, count, txn, first_part, status, data = wire.parse_reply(view)
            send = self._sends.pop(txn, None)
            if send is None:
                return
            connection = send.connection
            connection.sends -= 1
            if flags:
                connection.connected = True
                connection.first_part = min(first_part, wire.CHUNK_MAX)
            descriptors: tuple[int, ...] = ()
            if count:
                descriptors, self._descriptors = self._descriptors, ()
            if send.finished:
                for fd in descriptors:
                    os.close(fd)
            else:
                send.finish(status, data, descriptors)
            if connection.closed or connection.dead:
                self._end_if_quiet(connection)
        elif kind == wire.READ:
            txn, number, length, offset = wire.parse_read(view)
            send = self._sends.get(txn)
            if send is not None:
                data = memoryview(send.data)[offset : offset + length]
                status = -errno.ESRCH if send.finished else len(data)
                head = wire.READ_DATA_HEADER.pack(wire.READ_DATA, 0, send.connection.priority, 0, txn, number, status)
                self.transmit((head, data) if status > 0 else (head,))
        elif kind == wire.WRITE:
            txn, offset, data = wire.parse_write(view)
            send = self._sends.get(txn)
            if send is not None and not send.finished:
                send.push(offset, data)
        elif kind == wire.DEATH:
            connection_ = self._connections.get(wire.parse_bare(view))
            if connection_ is not None:
                connection_.dead = True
                connection_.events = None
                connection_.connected = False
                self._end_if_quiet(connection_)
        elif kind == wire.EVENT:
            number, handle = wire.parse_event(view)
            target = self._connections.get(number)
            if target is not None:
                self._server().delivered(target, handle)
        else:
            descriptors = ()
            if kind == wire.SEND and view[3]:
                descriptors, self._descriptors = self._descriptors, ()
            self._server().handle(kind, view, descriptors)

    def _end_if_quiet(self, connection: Connection) -> None:
        """As `resmgr.sending.SendingSide`: DETACH only after the last answer."""
        if connection.sends or self._connections.pop(connection.number, None) is None or self._gone:
            return
        if not connection.dead or connection.connected:
            self.transmit((wire.HEADER.pack(wire.DETACH, 0, connection.priority, 0, connection.number),))
        if connection.dead and connection.on_death is not None and not connection.closed:
            connection.on_death(connection)

    def _let_go(self, send: Send) -> None:
        """Ctrl-C: unblock, and give the server a moment."""
        try:
            send.unblock()
            deadline = time.monotonic() + UNBLOCK_GRACE
            while not send.finished and (left := deadline - time.monotonic()) > 0:
                self.pump(left)
        except ResmgrError:
            pass

    def _block(self, connection: Connection) -> bytes:
        """Who we are is filled in by the daemon, from the socket."""
        return wire.pack_block(wire.ConnectBlock(connection.nd, connection.pid, connection.chid, 0, 0, 0))

    def _lost(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._socket.close()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = ()
        sends, self._sends = list(self._sends.values()), {}
        for send in sends:
            if not send.finished:
                send.finish(-errno.ENOTCONN, b"", ())
        if self._service is not None:
            self._service.lost()
