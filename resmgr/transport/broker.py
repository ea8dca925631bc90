"""The daemon's part in direct links (docs/protocol/direct.md): who may have one, the socketpair, and who is told of its end.

A client asks for a link to a server's channel; if the server takes links and there is room, each gets one end of a new socketpair, the
server with what the client's socket proves about it. The daemon keeps neither end: it knows which links there are, and says UNLINK to the
one side when the other leaves the node. A link that is refused costs its client nothing but speed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from resmgr import directproto as proto
from resmgr.carrier import DescriptorCarrier
from resmgr.channel import Credentials, Descriptors
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.message import parse_bare


class Carrier(DescriptorCarrier, Protocol):
    def congested(self) -> bool: ...


class End:
    """One program's local socket. `used` are its links as a client by request, `served` as a server by number."""

    def __init__(self, carrier: Carrier, credentials: Credentials) -> None:
        self.carrier = carrier
        self.credentials = credentials
        self.most = 0
        """Links that it takes, as a server."""
        self.used: dict[int, _Direct] = {}
        self.served: dict[int, _Direct] = {}
        self.users: Counter[int] = Counter()
        """Links served, by the client's uid."""


class _Direct:
    def __init__(self, number: int, request: int, client: End, server: End) -> None:
        self.number = number
        self.request = request
        self.client = client
        self.server = server


class Broker:
    """See the head of this file. *find*: the program's local socket behind a pid and a channel id."""

    def __init__(self, find: Callable[[int, int], End | None]) -> None:
        self._find = find
        self._next = 0
        self.links = 0
        self.made = 0
        self.refused: Counter[str] = Counter()

    def handlers(self, end: End) -> dict[int, Callable[[Buffer, Descriptors], None]]:
        """What *end*'s program may say, by kind."""
        return {
            proto.OFFER: lambda view, descriptors: self._offer(end, view),
            proto.DIRECT: lambda view, descriptors: self._direct(end, view),
            proto.UNLINK: lambda view, descriptors: self._unlink(end, view),
        }

    def left(self, end: End) -> None:
        """A program's local socket has ended: what it had is the others' no more."""
        end.most = 0
        for link in list(end.served.values()):
            self._forget(link)
            link.client.carrier.send(0, (proto.pack_bare(proto.UNLINK, link.request, proto.TO_CLIENT),), 0)
        for link in list(end.used.values()):
            self._forget(link)
            link.server.carrier.send(0, (proto.pack_bare(proto.UNLINK, link.number),), 0)

    def _offer(self, end: End, view: Buffer) -> None:
        end.most = min(parse_bare(view), proto.LINKS_PER_SERVER)

    def _direct(self, client: End, view: Buffer) -> None:
        request, pid, chid = proto.parse_direct(view)
        if request in client.used:
            raise BadMessage("DIRECT with a request that is a link")
        server = self._find(pid, chid)
        code = self._room(client, server)
        if server is None or code:
            self._refuse(client, request, code)
            return
        try:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._refuse(client, request, errno.EAGAIN)
            return
        with ends[0], ends[1]:
            # Read on here, as every program that is handed an end reads it.
            self._next = self._next % 0xFFFFFFFF + 1
            while self._next in server.served:
                self._next = self._next % 0xFFFFFFFF + 1
            link = _Direct(self._next, request, client, server)
            who = client.credentials
            try:
                accept = proto.pack_accept(link.number, who.pid, who.uid, who.gid, who.groups)
                server.carrier.send_descriptors(0, (accept,), 0, (ends[1].fileno(),))
                client.carrier.send_descriptors(0, (proto.pack_linked(request, 0),), 0, (ends[0].fileno(),))
            except OSError:
                # No descriptor left for a copy. If the server has its end already, it sees that there is nobody at the other.
                self._refuse(client, request, errno.EAGAIN)
                return
        client.used[request] = server.served[link.number] = link
        server.users[who.uid] += 1
        self.links += 1
        self.made += 1

    def _room(self, client: End, server: End | None) -> int:
        """0, or the errno of the refusal."""
        if server is None or server is client:
            return errno.EBADF
        if not server.most:
            return errno.ENOTSUP
        if len(server.served) >= server.most or len(client.used) >= proto.LINKS_PER_CLIENT:
            return errno.EAGAIN
        if server.users[client.credentials.uid] >= max(server.most // 4, 1) or server.carrier.congested():
            return errno.EAGAIN
        return 0

    def _refuse(self, client: End, request: int, code: int) -> None:
        self.refused[os.strerror(code)] += 1
        client.carrier.send(0, (proto.pack_linked(request, -code),), 0)

    def _unlink(self, end: End, view: Buffer) -> None:
        """A server has ended a link; what a client says of one is its request."""
        link = end.served.get(parse_bare(view))
        if link is not None:
            self._forget(link)

    def _forget(self, link: _Direct) -> None:
        self.links -= 1
        del link.client.used[link.request]
        del link.server.served[link.number]
        uid = link.client.credentials.uid
        link.server.users[uid] -= 1
        if not link.server.users[uid]:
            del link.server.users[uid]
