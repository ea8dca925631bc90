"""Messages between a node's daemon and the processes of its machine, over AF_UNIX (SOCK_SEQPACKET; see `datagram`).

The daemon's side is `UnixServer`: it accepts, asks the kernel who the client is (SO_PEERCRED, SO_PEERGROUPS: nothing the client says about
itself is believed), says HELLO, and makes a `Peer` for it. From then on the process is a part of the node: it sends to any channel the
node reaches, and channels that it creates are reached by others as `(0, its pid, chid)`.

A process may connect several times (several libraries in it). All its links share its pid; each link gets a range of channel ids, told
in HELLO, so creating a channel needs no round trip and the daemon finds the link from the channel id (`ProcessLinks`).

Back-pressure (`carrier`). While much waits to be written for a process, nothing more is read from it and new messages from others to it
fail with EAGAIN; a process that makes its queue grow all the same (by not reading answers to what it had asked for before) is
disconnected. Nobody else is delayed.

One user's programs have a quarter of all links, and one `Keeper` for the descriptors that they sent or are to be sent. RESERVED links
are for root and the daemon's own user, who would otherwise find the door shut by a few users.

The end of a process closes its socket, whatever kills it: its sends are unblocked, its channels die, its names go.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import Counter
from functools import partial
from typing import Final

import attrs

from resmgr import message as wire
from resmgr.channel import PID_SYSTEM, Answerer, Connection, Credentials, Descriptors, Kernel, Pending
from resmgr.directproto import BROKERS, CHID_BITS
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.peer import Peer
from resmgr.serving import Limits
from resmgr.transport import peercred
from resmgr.transport.broker import Broker, End
from resmgr.transport.carrier import UnixCarrier, discard
from resmgr.transport.descriptors import Keeper

LINKS_MAX = 1024
"""Local sockets in all, and a quarter of them for one user. Stops a user from using up the daemon's descriptors."""
LINKS_PER_USER = LINKS_MAX // 4
RESERVED = LINKS_MAX // 16
"""Of these, for root and the daemon's user only."""
KEEPERS_MAX: Final = 256
"""Users whose keepers stay when they have no links."""
LINK_INDEX_MAX = (1 << (32 - CHID_BITS)) - 1
FIRST_CHID: Final = 16
SYNTHETIC_PID: Final = 1 << 30
"""Pids from here on are given to clients whose own cannot be told (another pid namespace) or is taken by the node itself."""
ACCEPT_PAUSE: Final = 0.1
ACCEPTS_PER_TURN: Final = 64
BACKLOG: Final = 1024
"""Programs that wait to be accepted; the system's own limit is often the smaller. Beyond it a program waits at the door (`client`)."""


class ProcessLinks:
    """All links of one process, as the `Remote` that carries connections to its channels."""

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        self._next_index = 0

    def free_index(self) -> int | None:
        """For a new link: a number that was not used lately, so that what was said of an old link's channels is not taken for its own.
        None: all are in use."""
        if len(self.peers) > LINK_INDEX_MAX:
            return None
        while self._next_index in self.peers:
            self._next_index = self._next_index + 1 & LINK_INDEX_MAX
        index = self._next_index
        self._next_index = index + 1 & LINK_INDEX_MAX
        return index

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

    def __init__(
        self, server: UnixServer, sock: socket.socket, credentials: Credentials, uid: int, limits: Limits | None, keeper: Keeper
    ) -> None:
        self.server = server
        self.credentials = credentials
        self.uid = uid
        self.index = -1
        own = server.kernel.running.own
        failed = None if own is None else partial(own.failure, "local link")
        self.carrier = UnixCarrier(server.dispatch, sock, self.down, failed, keeper)
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
        self._keepers: dict[int, Keeper] = {}
        """Of the descriptors of each user, by uid; -1: of those whose uid could not be told."""
        self._privileged = frozenset((0, os.geteuid()))
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
        for keeper in self._keepers.values():
            keeper.end()

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
                self._refuse(sock, "failed", -1)

    def _listen_again(self) -> None:
        self._pause = None
        self.dispatch.want_read(self._socket.fileno(), True)

    def _admit(self, sock: socket.socket) -> None:
        try:
            credentials = peercred.peer_credentials(sock)
        except OSError:
            self._refuse(sock, "credentials unknown", -1)
            return
        uid = credentials.uid
        room = LINKS_MAX if uid in self._privileged else LINKS_MAX - RESERVED
        if len(self._clients) >= room or self._users[uid] >= LINKS_PER_USER:
            self._refuse(sock, "too many links", uid)
            return
        if self._keeper(uid).is_full:
            self._refuse(sock, "too many descriptors", uid)
            return
        if credentials.pid in (0, PID_SYSTEM) or credentials.pid >= SYNTHETIC_PID:
            self._next_synthetic += 1
            credentials = attrs.evolve(credentials, pid=self._next_synthetic)
        process = self._processes.get(credentials.pid)
        if process is None:
            process = self._processes[credentials.pid] = ProcessLinks()
            self.kernel.attach_process(credentials.pid, process)
        index = process.free_index()
        if index is None:
            self._refuse(sock, "channel ids used up", uid)
            return
        client = _Client(self, sock, credentials, uid, self._limits, self._keeper(uid))
        client.index = index
        process.peers[client.index] = client.peer
        self._ends[credentials.pid, client.index] = client.end
        self._clients[client] = None
        self._users[uid] += 1
        self._accepted += 1
        hello = wire.pack_hello(credentials.pid, (client.index << CHID_BITS) + FIRST_CHID, self.kernel.node_name, BROKERS)
        client.carrier.send(0, (hello,), 0)

    def _keeper(self, uid: int) -> Keeper:
        keeper = self._keepers.get(uid)
        if keeper is None:
            if len(self._keepers) >= KEEPERS_MAX:
                self._keepers = {one: kept for one, kept in self._keepers.items() if one in self._users or kept.held}
            keeper = self._keepers[uid] = Keeper()
        return keeper

    def _refuse(self, sock: socket.socket, reason: str, uid: int) -> None:
        """Close a link that is not taken, which may hold descriptors already."""
        self._refused[reason] += 1
        discard(sock, self._keeper(uid))

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
