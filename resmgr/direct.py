"""Direct links of a program that has a kernel: to other programs of its node, without the daemon (docs/protocol/direct.md).

`DirectLinks` is the `Remote` of a process's kernel (`Kernel.uplink`). Each connection takes one way at its first send or pulse and keeps
it: the direct link to the server's program, or the daemon. What is sent while the daemon is asked for a link waits here in order.

As a server: ACCEPT brings the other end of a client's link. It is a `Peer` like the daemon's for that client, with the credentials that the
daemon attests, and reaches the channels of this kernel only.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

from resmgr import directproto as proto
from resmgr import message as wire
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Answerer, Connection, Credentials, Descriptors, Kernel, Pending, Remote
from resmgr.dispatch import Buffer, Dispatch
from resmgr.errors import BadMessage
from resmgr.peer import Peer
from resmgr.sending import Outlet
from resmgr.serving import PENDING_MAX, Limits
from resmgr.transport.carrier import UnixCarrier


class _Queued:
    """A send that waits for the way that its connection is going to take."""

    def __init__(
        self, connection: Connection, data: Buffer, msglen: int, reply_len: int, priority: int, answerer: Answerer, descriptors: Descriptors
    ) -> None:
        self.connection = connection
        self.data = data
        self.msglen = msglen
        self.reply_len = reply_len
        self.priority = priority
        self.answerer: Answerer | None = answerer
        self.descriptors = descriptors
        self.pending: Pending | None = None

    def unblock(self) -> None:
        answerer, self.answerer = self.answerer, None
        if answerer is not None:
            answerer.answer(-errno.EINTR, (), ())
        elif self.pending is not None:
            self.pending.unblock()

    def go(self, remote: Remote) -> None:
        answerer, self.answerer = self.answerer, None
        if answerer is not None:
            self.pending = remote.relay(self.connection, self.data, self.msglen, self.reply_len, self.priority, answerer, self.descriptors)


class _Way:
    """To one link of another program: `peer` once there is a direct link, `waiting` until the daemon has said."""

    def __init__(self, request: int, place: tuple[int, int]) -> None:
        self.request = request
        self.place = place
        self.peer: Peer | None = None
        self.carrier: UnixCarrier | None = None
        self.waiting: list[tuple[Connection, Callable[[Remote], object]]] = []


class DirectLinks:
    """See the head of this file. Everything in dispatch context."""

    def __init__(self, kernel: Kernel, dispatch: Dispatch, daemon: Peer, carrier: UnixCarrier, limits: Limits | None = None) -> None:
        self._kernel = kernel
        self._dispatch = dispatch
        self._daemon = daemon
        self._carrier = carrier
        self._limits = limits
        self._places: dict[tuple[int, int], _Way] = {}
        self._requests: dict[int, _Way] = {}
        self._next_request = 0
        self._served: dict[int, tuple[Peer, UnixCarrier]] = {}
        self._closed = False
        self.refused: Counter[int] = Counter()
        """Links that the daemon did not make, by errno: those connections go through it."""
        daemon.handle(proto.LINKED, self._linked)
        daemon.handle(proto.ACCEPT, self._accept)
        daemon.handle(proto.UNLINK, self._unlink)
        self._carrier.send(0, (proto.pack_bare(proto.OFFER, proto.links_offered(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),), 0)

    @property
    def counts(self) -> tuple[int, int]:
        """Direct links as a client, and as a server."""
        return sum(way.peer is not None for way in self._places.values()), len(self._served)

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
        """`Remote.relay`."""
        outlet = connection.remote_state
        if isinstance(outlet, Outlet):
            return outlet.side.relay(connection, data, msglen, reply_len, priority, answerer, descriptors)
        way = self._way(connection)
        if isinstance(way, Peer):
            return way.relay(connection, data, msglen, reply_len, priority, answerer, descriptors)
        if len(way.waiting) >= PENDING_MAX:
            answerer.answer(-errno.EAGAIN, (), ())
            return None
        queued = _Queued(connection, data, msglen, reply_len, priority, answerer, descriptors)
        way.waiting.append((connection, queued.go))
        return queued

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        """`Remote.pulse`."""
        outlet = connection.remote_state
        if isinstance(outlet, Outlet):
            return outlet.side.pulse(connection, code, value, priority)
        way = self._way(connection)
        if isinstance(way, Peer):
            return way.pulse(connection, code, value, priority)
        if len(way.waiting) >= PENDING_MAX:
            return -errno.EAGAIN
        way.waiting.append((connection, lambda remote: remote.pulse(connection, code, value, priority)))
        return 0

    def detach(self, connection: Connection) -> None:
        """`Remote.detach`."""
        outlet = connection.remote_state
        if isinstance(outlet, Outlet):
            outlet.side.detach(connection)
            return
        way = self._places.get((connection.pid, connection.chid >> proto.CHID_BITS))
        if way is not None and any(waiting is connection for waiting, _ in way.waiting):
            way.waiting.append((connection, lambda remote: remote.detach(connection)))

    def down(self, code: int, farewell: bool) -> None:
        """The daemon is gone, or we leave the node. *farewell*: the clients are told that the daemon is."""
        self._closed = True
        ways, self._places = list(self._places.values()), {}
        self._requests.clear()
        served, self._served = self._served, {}
        for peer, carrier in served.values():
            if farewell:
                carrier.send_last(proto.pack_bare(proto.UNLINK, errno.ENOTCONN))
            carrier.close()
            peer.down(code)
        for way in ways:
            self._flush(way, self._daemon)
            if way.carrier is not None and way.peer is not None:
                way.carrier.close()
                way.peer.down(code)

    def _way(self, connection: Connection) -> Peer | _Way:
        """Which way a connection takes that has not sent yet; a `_Way` while that is not known."""
        if connection.nd != ND_LOCAL or connection.pid == PID_SYSTEM or self._closed:
            return self._daemon
        place = connection.pid, connection.chid >> proto.CHID_BITS
        way = self._places.get(place)
        if way is None:
            if len(self._places) >= proto.LINKS_PER_CLIENT and not self._make_room():
                self.refused[errno.EAGAIN] += 1
                return self._daemon
            self._next_request = self._next_request + 1 & wire.ID_MAX
            way = self._places[place] = self._requests[self._next_request] = _Way(self._next_request, place)
            self._carrier.send(0, (proto.pack_direct(way.request, connection.pid, connection.chid),), 0)
        return way if way.peer is None else way.peer

    def _make_room(self) -> bool:
        """Close one link that has no connections."""
        for way in self._places.values():
            if way.peer is not None and way.carrier is not None and way.peer.idle:
                way.carrier.close()
                self._ended(way, errno.ESRCH)
                return True
        return False

    def _linked(self, view: Buffer, descriptors: Descriptors) -> None:
        request, status = proto.parse_linked(view)
        way = self._requests.get(request)
        if way is None or way.peer is not None:
            raise BadMessage("LINKED that nobody asked for")
        if status or len(descriptors) != 1:
            # No descriptor: this program has no room for one.
            self.refused[-status or errno.EMFILE] += 1
            del self._requests[request], self._places[way.place]
            self._flush(way, self._daemon)
            return
        carrier = way.carrier = UnixCarrier(self._dispatch, _adopt(descriptors), partial(self._lost, way))
        way.peer = Peer(self._kernel, carrier, congested=carrier.congested, descriptors=carrier, serves=False)
        way.peer.handle(proto.UNLINK, partial(self._farewell, way))
        carrier.on_message = way.peer.receive
        self._flush(way, way.peer)

    def _flush(self, way: _Way, remote: Remote) -> None:
        waiting, way.waiting = way.waiting, []
        for _, call in waiting:
            call(remote)

    def _lost(self, way: _Way, reason: str) -> None:
        """A link has ended: the server is gone."""
        self._ended(way, errno.ESRCH)

    def _farewell(self, way: _Way, view: Buffer, descriptors: Descriptors) -> None:
        """The server says that its daemon, which is ours, is gone; we hear it ourselves soon."""
        code = wire.parse_bare(view)
        if code != errno.ENOTCONN or way.carrier is None:
            raise BadMessage("UNLINK with another reason than there is")
        way.carrier.close()
        self._ended(way, code)

    def _ended(self, way: _Way, code: int) -> None:
        if self._requests.pop(way.request, None) is not None:
            del self._places[way.place]
        if way.peer is not None:
            way.peer.down(code)

    def _accept(self, view: Buffer, descriptors: Descriptors) -> None:
        link, who = proto.parse_accept(view)
        if link in self._served:
            raise BadMessage("ACCEPT of a link that there is")
        if len(descriptors) != 1:
            self._carrier.send(0, (proto.pack_bare(proto.UNLINK, link),), 0)
            return
        carrier = UnixCarrier(self._dispatch, _adopt(descriptors), partial(self._client_lost, link))
        peer = Peer(
            self._kernel,
            carrier,
            credentials=Credentials(who.uid, who.gid, who.groups, who.client_pid),
            final=True,
            congested=carrier.congested,
            descriptors=carrier,
            limits=self._limits,
        )
        carrier.on_message = peer.receive
        self._served[link] = peer, carrier

    def _client_lost(self, link: int, reason: str) -> None:
        entry = self._served.pop(link, None)
        if entry is not None:
            self._carrier.send(0, (proto.pack_bare(proto.UNLINK, link),), 0)
            entry[0].down(errno.ESRCH)

    def _unlink(self, view: Buffer, descriptors: Descriptors) -> None:
        """The other program has left the node; numbers of links and of requests are told apart by who made them."""
        number = wire.parse_bare(view)
        if view[1] == proto.TO_CLIENT:
            way = self._requests.get(number)
            if way is not None and way.carrier is not None:
                way.carrier.drain()
                way.carrier.close()
                self._ended(way, errno.ESRCH)
            return
        entry = self._served.pop(number, None)
        if entry is not None:
            entry[1].drain()
            entry[1].close()
            entry[0].down(errno.ESRCH)


def _adopt(descriptors: Descriptors) -> socket.socket:
    """A socket of our own from a descriptor that is lent."""
    fd = os.dup(descriptors[0])
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
