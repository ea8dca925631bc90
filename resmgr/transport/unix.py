"""Messages between a node's daemon and the processes of its machine, over AF_UNIX (SOCK_SEQPACKET; see `datagram`).

The daemon's side is `UnixServer`: it accepts, asks the kernel who the client is (SO_PEERCRED, SO_PEERGROUPS: nothing the client says about
itself is believed), says HELLO, and makes a `Peer` for it. From then on the process is a part of the node: it sends to any channel the
node reaches, and channels that it creates are reached by others as `(0, its pid, chid)`.

A process may connect several times (several libraries in it). All its links share its pid; each link gets a range of channel ids, told
in HELLO, so creating a channel needs no round trip and the daemon finds the link from the channel id (`ProcessLinks`).

Back-pressure. What cannot be written waits in a queue. While it is longer than `OUTPUT_HIGH`, nothing more is read from that process and
new messages from others to it fail with EAGAIN; a process that makes its queue grow beyond `OUTPUT_MAX` all the same (by not reading
answers to what it had asked for before) is disconnected. Nobody else is delayed.

The end of a process closes its socket, whatever kills it: its sends are unblocked, its channels die, its names go.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from resmgr import message as wire
from resmgr.channel import PID_SYSTEM, Answerer, Connection, Credentials, Descriptors, Kernel, Pending
from resmgr.directproto import BROKERS, CHID_BITS
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import BadMessage, Misuse
from resmgr.peer import Peer
from resmgr.serving import Limits
from resmgr.transport import peercred
from resmgr.transport.broker import Broker, End
from resmgr.transport.datagram import DATAGRAM_MAX, LENGTH, LENGTH_SIZE, Assembler, fragments
from resmgr.transport.descriptors import OwnedDescriptors

OUTPUT_HIGH = 1 << 20
OUTPUT_MAX = 64 << 20
"""Bytes queued for one process before it is disconnected. Stops a process that never reads from filling the daemon's memory."""
LINKS_MAX = 1024
"""Local sockets in all, and a quarter of them for one user. Stops a user from using up the daemon's descriptors."""
LINKS_PER_USER = LINKS_MAX // 4
READS_PER_TURN = 16
DRAIN_MAX = 64
"""Times READS_PER_TURN that a link is read before it is closed. Stops who goes on writing."""
JOIN_MAX = 16384
"""Output up to this is joined into one buffer (a copy is cheaper than a vector); larger output is written as a vector."""
LINK_INDEX_MAX = (1 << (32 - CHID_BITS)) - 1
FIRST_CHID = 16
SYNTHETIC_PID = 1 << 30
"""Pids from here on are given to clients whose own cannot be told (another pid namespace) or is taken by the node itself."""
ACCEPT_PAUSE = 0.1
ACCEPTS_PER_TURN = 16
BACKLOG = 128

_ANCILLARY = socket.CMSG_SPACE(wire.DESCRIPTORS_MAX * 4)
# As plain numbers: arithmetic on the enumeration costs as much as the system call.
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC)


def _unset(view: Buffer, stream: int, priority: int, descriptors: Descriptors) -> None:
    raise Misuse("a carrier without a receiver")


class UnixCarrier:
    """One connected socket as a `DescriptorCarrier`. Owns it. `on_message`, to be set, is like `Peer.receive`; `on_down` comes once.

    *on_failure* gets what the handling of a message raised, and the link ends; without, that leaves the dispatch.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        sock: socket.socket,
        on_down: Callable[[str], None],
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.on_message: Callable[[Buffer, int, int, Descriptors], None] = _unset
        self.queued = 0
        """Bytes taken by `send` and not yet by the kernel."""
        self.reads = self.writes = 0
        self._dispatch = dispatch
        self._socket = sock
        self._fd = sock.fileno()
        self._on_down = on_down
        self._on_failure = on_failure
        self._assembler = Assembler()
        self._descriptors: Descriptors = ()
        self._inbox: deque[tuple[memoryview, Descriptors]] = deque()
        self._ready: deque[tuple[list[Buffer], int, OwnedDescriptors | None]] = deque()
        self._open: list[Buffer] = []
        self._open_size = 0
        self._scheduled = False
        self._blocked = False
        self._paused = False
        self._closed = False
        self._more_likely = False
        sock.setblocking(False)
        dispatch.attach_fd(self._fd, self._readable)

    def congested(self) -> bool:
        return self.queued > OUTPUT_HIGH

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, route: int = 0) -> None:
        """`Carrier.send`. The stream does not matter: one socket keeps the order of everything."""
        if self._closed:
            return
        size = LENGTH_SIZE
        for part in parts:
            size += len(part)
        if size > DATAGRAM_MAX:
            self._end_datagram()
            for datagram in fragments(parts, size - LENGTH_SIZE):
                self._queue(datagram, None)
        else:
            self.queued += size
            if self._open_size + size > DATAGRAM_MAX:
                self._end_datagram()
            self._open.append(LENGTH.pack(size - LENGTH_SIZE))
            self._open.extend(parts)
            self._open_size += size
        self._schedule()

    def send_descriptors(self, stream: int, parts: Sequence[Buffer], priority: int, descriptors: Descriptors) -> None:
        """`DescriptorCarrier.send_descriptors`: the message gets a datagram of its own, the descriptors are copied."""
        if self._closed:
            return
        self._end_datagram()
        copies: list[int] = []
        try:
            for fd in descriptors:
                copies.append(os.dup(fd))
        finally:
            owned = OwnedDescriptors(copies)
        for number, datagram in enumerate(fragments(parts, sum(map(len, parts)))):
            self._queue(datagram, owned if number == 0 else None)
        self._schedule()

    def drain(self) -> None:
        """Read what has arrived, before a `close` that the other end did not ask for. `on_down` may come."""
        for _ in range(DRAIN_MAX):
            before = self.reads
            if not self._closed:
                self._more_likely = True
                self._readable()
            if self.reads == before or self._paused:
                return

    def send_last(self, message: bytes) -> None:
        """Send a small message right before `close`, if it can go now."""
        if not self._closed:
            self._flush()
        if not self._closed and not self._ready:
            try:
                self._socket.send(LENGTH.pack(len(message)) + message)
            except OSError:
                pass

    def close(self) -> None:
        """Close the socket; nothing more is delivered and `on_down` does not come."""
        if self._closed:
            return
        self._closed = True
        self._dispatch.detach_fd(self._fd)
        self._socket.close()
        self._ready.clear()
        self._open.clear()
        self._inbox.clear()
        self._descriptors = ()

    def _schedule(self) -> None:
        if not self._scheduled and not self._blocked:
            self._scheduled = True
            self._dispatch.at_turn_end(self._flush)
        if self.queued > OUTPUT_HIGH:
            if not self._paused:
                self._paused = True
                self._dispatch.want_read(self._fd, False)
            if self.queued > OUTPUT_MAX:
                # Not from here: whoever sends is in the middle of something.
                self._dispatch.call_soon(self._overflow)

    def _queue(self, datagram: list[Buffer], descriptors: OwnedDescriptors | None) -> None:
        size = sum(map(len, datagram))
        self.queued += size
        self._ready.append((datagram, size, descriptors))

    def _end_datagram(self) -> None:
        if self._open:
            self._ready.append((self._open, self._open_size, None))
            self._open = []
            self._open_size = 0

    def _failed(self, error: Exception) -> None:
        """A mistake of ours in the handling of this link costs this link, not the node."""
        if self._on_failure is None:
            raise error
        self._on_failure(error)
        self._down("failed")

    def _flush(self) -> None:
        """Write what is queued, until the socket is full."""
        try:
            self._write()
        except Exception as error:
            self._failed(error)

    def _write(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        self._end_datagram()
        ready = self._ready
        while ready:
            parts, size, descriptors = ready[0]
            try:
                if descriptors is not None:
                    self._socket.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
                elif size <= JOIN_MAX or len(parts) > 64:
                    self._socket.send(b"".join(parts))
                else:
                    self._socket.sendmsg(parts)
            except BlockingIOError:
                break
            except OSError as error:
                self._down(error.strerror or "write failed")
                return
            ready.popleft()
            self.queued -= size
            self.writes += 1
        if bool(ready) != self._blocked:
            self._blocked = bool(ready)
            self._dispatch.want_write(self._fd, self._flush if ready else None)
        if self._paused and self.queued <= OUTPUT_HIGH:
            self._paused = False
            self._dispatch.want_read(self._fd, True)
            self._dispatch.call_soon(self._deliver)

    def _overflow(self) -> None:
        if self.queued > OUTPUT_MAX:
            self._down("reads too little")

    def _readable(self) -> None:
        try:
            self._read()
        except Exception as error:
            self._failed(error)

    def _read(self) -> None:
        reset = False
        for _ in range(READS_PER_TURN):
            try:
                datagram, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_MAX, _ANCILLARY, _CLOEXEC)
            except BlockingIOError:
                self._more_likely = False
                return
            except OSError as error:
                if error.errno == errno.ECONNRESET and not reset:
                    reset = True  # the other end closed with something unread; what it wrote before is still here
                    continue
                self._down(error.strerror or "read failed")
                return
            if ancillary:
                self._take(ancillary)
            if not datagram:
                self._down("closed")
                return
            self.reads += 1
            if flags & _CUT:
                self._down("datagram too large")
                return
            try:
                messages = self._assembler.feed(datagram)
            except BadMessage as bad:
                self._down(str(bad))
                return
            if len(messages) == 1 and not self._inbox and not self._paused:
                descriptors, self._descriptors = self._descriptors, ()
                self.on_message(messages[0], 0, 0, descriptors)
                # A sender of one small message waits for the answer: looking for another would cost a call for nothing.
                if not self._more_likely and len(datagram) < DATAGRAM_MAX // 2:
                    return
            else:
                for message in messages:
                    self._inbox.append((message, self._descriptors))
                    self._descriptors = ()
                self._deliver()
            if self._closed or self._paused:
                return
            self._more_likely = True

    def _deliver(self) -> None:
        """Hand on what has arrived, until what it caused to be sent is enough for now."""
        inbox = self._inbox
        try:
            while inbox and not self._paused:
                message, descriptors = inbox.popleft()
                self.on_message(message, 0, 0, descriptors)
        except Exception as error:
            self._failed(error)

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._descriptors = OwnedDescriptors(received)

    def _down(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_down(reason)


class ProcessLinks:
    """All links of one process, as the `Remote` that carries connections to its channels."""

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        self.next_index = 0

    def relay(
        self,
        connection: Connection,
        data: Buffer,
        msglen: int,
        reply_len: int,
        priority: int,
        answerer: Answerer,
        descriptors: Descriptors,
    ) -> Pending | None:
        peer = self.peers.get(connection.chid >> CHID_BITS)
        if peer is None:
            answerer.answer(-errno.EBADF, (), ())
            return None
        return peer.relay(connection, data, msglen, reply_len, priority, answerer, descriptors)

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        peer = self.peers.get(connection.chid >> CHID_BITS)
        return -errno.EBADF if peer is None else peer.pulse(connection, code, value, priority)

    def detach(self, connection: Connection) -> None:
        peer = self.peers.get(connection.chid >> CHID_BITS)
        if peer is not None:
            peer.detach(connection)


@attrs.frozen
class UnixStatistics:
    """`links`, `queued` and `direct` now; the rest since start. `closed` counts ends of links by reason, `refused` clients not taken by
    reason, `direct_refused` links between programs not made by reason.
    """

    links: int
    accepted: int
    queued: int
    closed: dict[str, int]
    refused: dict[str, int]
    direct: int
    direct_made: int
    direct_refused: dict[str, int]


class _Client:
    """One accepted link."""

    def __init__(self, server: UnixServer, sock: socket.socket, credentials: Credentials, uid: int, limits: Limits | None) -> None:
        self.server = server
        self.credentials = credentials
        self.uid = uid
        self.index = -1
        own = server.kernel.running.own
        self.carrier = UnixCarrier(server.dispatch, sock, self.down, None if own is None else partial(own.failure, "local link"))
        self.peer = Peer(
            server.kernel,
            self.carrier,
            credentials=credentials,
            routes=True,
            congested=self.carrier.congested,
            descriptors=self.carrier,
            limits=limits,
        )
        self.end = End(self.carrier, credentials)
        for kind, handler in server.broker.handlers(self.end).items():
            self.peer.handle(kind, handler)
        self.carrier.on_message = self.peer.receive

    def down(self, reason: str) -> None:
        self.server.ended(self, reason)


class UnixServer:
    """Listens at *path* (made with mode 0666; whoever may enter the directory may connect) until `close`."""

    def __init__(
        self,
        dispatch: Dispatch,
        kernel: Kernel,
        path: str | bytes | os.PathLike[str],
        *,
        backlog: int = BACKLOG,
        limits: Limits | None = None,
    ) -> None:
        self.dispatch = dispatch
        self.kernel = kernel
        self.path = os.fsdecode(path)
        self._limits = limits
        self._clients: dict[_Client, None] = {}
        self._processes: dict[int, ProcessLinks] = {}
        self._ends: dict[tuple[int, int], End] = {}
        """Local sockets by pid and the link's number."""
        self.broker = Broker(lambda pid, chid: self._ends.get((pid, chid >> CHID_BITS)))
        """Makes direct links between programs."""
        self._users: Counter[int] = Counter()
        self._next_synthetic = SYNTHETIC_PID
        self._accepted = 0
        self._closed_reasons: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._pause: Timer | None = None
        self._socket = _listen(self.path, backlog)
        self._inode = os.stat(self.path).st_ino
        dispatch.attach_fd(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, end every link, remove the socket file if it is still ours."""
        if self._pause is not None:
            self._pause.cancel()
        self.dispatch.detach_fd(self._socket.fileno())
        self._socket.close()
        try:
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass
        for client in list(self._clients):
            client.carrier.close()
            self.ended(client, "server closed")

    def statistics(self) -> UnixStatistics:
        return UnixStatistics(
            len(self._clients),
            self._accepted,
            sum(client.carrier.queued for client in self._clients),
            dict(self._closed_reasons),
            dict(self._refused),
            self.broker.links,
            self.broker.made,
            dict(self.broker.refused),
        )

    def peers(self) -> list[tuple[Credentials, Peer]]:
        """Every link: who, and its peer."""
        return [(client.credentials, client.peer) for client in self._clients]

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: listening on would be a busy loop.
                self._refused[error.strerror or "accept failed"] += 1
                self.dispatch.want_read(self._socket.fileno(), False)
                self._pause = self.dispatch.call_at(self.dispatch.now() + ACCEPT_PAUSE, self._listen_again)
                return
            own = self.kernel.running.own
            if own is None:
                self._admit(sock)
            elif not own.run("local link", self._admit, sock):
                self._refused["failed"] += 1
                sock.close()

    def _listen_again(self) -> None:
        self._pause = None
        self.dispatch.want_read(self._socket.fileno(), True)

    def _admit(self, sock: socket.socket) -> None:
        try:
            credentials = peercred.peer_credentials(sock)
        except OSError:
            self._refused["credentials unknown"] += 1
            sock.close()
            return
        if len(self._clients) >= LINKS_MAX or self._users[credentials.uid] >= LINKS_PER_USER:
            self._refused["too many links"] += 1
            sock.close()
            return
        if credentials.pid in (0, PID_SYSTEM) or credentials.pid >= SYNTHETIC_PID:
            self._next_synthetic += 1
            credentials = attrs.evolve(credentials, pid=self._next_synthetic)
        process = self._processes.get(credentials.pid)
        if process is None:
            process = self._processes[credentials.pid] = ProcessLinks()
            self.kernel.attach_process(credentials.pid, process)
        if process.next_index > LINK_INDEX_MAX:
            self._refused["channel ids used up"] += 1
            sock.close()
            return
        client = _Client(self, sock, credentials, credentials.uid, self._limits)
        client.index = process.next_index
        process.next_index += 1
        process.peers[client.index] = client.peer
        self._ends[credentials.pid, client.index] = client.end
        self._clients[client] = None
        self._users[credentials.uid] += 1
        self._accepted += 1
        hello = wire.pack_hello(credentials.pid, (client.index << CHID_BITS) + FIRST_CHID, self.kernel.node_name, BROKERS)
        client.carrier.send(0, (hello,), 0)

    def ended(self, client: _Client, reason: str) -> None:
        """A link is down (called by the link)."""
        if client not in self._clients:
            return
        del self._clients[client]
        self._closed_reasons[reason] += 1
        self._users[client.uid] -= 1
        if not self._users[client.uid]:
            del self._users[client.uid]
        pid = client.credentials.pid
        process = self._processes[pid]
        process.peers.pop(client.index, None)
        self._ends.pop((pid, client.index), None)
        self.broker.left(client.end)
        if not process.peers:
            del self._processes[pid]
            self.kernel.detach_process(pid)
        client.peer.down(errno.ESRCH)


def _listen(path: str, backlog: int) -> socket.socket:
    """A listening socket at *path*, in place of a left-over socket file. That no other daemon listens there is the caller's to know."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    fresh = f"{path}.{os.getpid()}"
    try:
        try:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(errno.EEXIST, "there is a file that is no socket", path)
        except FileNotFoundError:
            pass
        sock.bind(fresh)
        try:
            os.chmod(fresh, 0o666)
            sock.listen(backlog)
            os.rename(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
