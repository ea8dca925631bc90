"""`Peer`: message passing between two kernels over a carrier; what Qnet's kernel interface (KIF) is to QNX.

One symmetric machine for both uses: to another node (the carrier is the network module's transport) and to a process of this node (the
carrier is an AF_UNIX socket; the other kernel is the process's library). It knows no sockets, tasks or clocks.

The *sending side* carries what clients here sent through us: `Kernel` calls `relay`, `pulse` and `detach` (the `Remote` protocol). The
*serving side* brings what the other side's clients sent: each of their connections is a `Connection` in our kernel, so a channel here, in
a process of this node or (for processes) on another node is reached by the same `Kernel.relay`. That makes a forwarding daemon nothing
special: reply, read, write, unblock and death pass through as they come.

Order. Each transaction is a stream in each direction: SEND before UNBLOCK and READ_DATA; READ and WRITE before REPLY. Pulses and the
DETACH of one connection are a stream. Streams overtake each other, so:
- the connect block rides with every SEND and PULSE until one REPLY came back: whichever arrives first makes the connection;
- DETACH goes out after the last transaction of its connection was answered: no SEND can arrive after it.

Trust. Nothing the other side sends is believed beyond what its carrier proves: a process is who the socket says (`credentials`); a node is
who its certificate says (`nd`, `node`, `roles`), its clients are what it claims them to be, which `resmgr.access` maps. Only a process
believes its daemon about third parties (`believes`), and only a process may ask to be forwarded to another node (`routes`).

What differs from QNX: byte counts of writes are exact because the length of the reply buffer travels with the send; the server chooses
how much of a message comes unasked (QNX: 8 KB); a send to a peer that is out of reach at the moment (`suspect`) is unblocked at once.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from resmgr import message as wire
from resmgr.carrier import Carrier, DescriptorCarrier, Link
from resmgr.channel import ND_LOCAL, Answerer, ClientInfo, Connection, Credentials, Descriptors, Kernel, Nd, Pending
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage
from resmgr.sending import SendingSide
from resmgr.serving import Authorize, Limits, ServingSide


def _allow(info: ClientInfo, pid: int, chid: int) -> int:
    return 0


def _never() -> bool:
    return False


def _open(route: int) -> int:
    return 0


@attrs.frozen
class PeerStatistics:
    """Gauges, then counters since the peer came up. `dropped` counts messages that did not parse or made no sense, by reason."""

    outgoing: int
    incoming: int
    connections_out: int
    connections_in: int
    held: int
    sends: int
    served: int
    refused: int
    dropped: dict[str, int]


class Peer:
    """One link to another kernel, from its beginning to `down`; the next link is a new `Peer`. See the head of this file.

    `nd`, `node`, `roles`: who the other side is, if it is a node. `credentials`: who it is, if it is a process of this node.
    `believes`, `routes`: see "Trust" above. `authorize`: policy for its clients. `congested`: whether the carrier has so much to send
    that new messages to this peer should fail with EAGAIN. `descriptors`: the carrier again, if it passes descriptors. `stuck`: whether
    messages of a route (not 0) do not get through although the peer may be there: 0 if they do, WAITING if they wait, or the errno with
    which they fail. `route`: of connections whose descriptor names none. `serves`: whether the other side's clients are heard at all;
    `final`: whether they reach channels of this kernel only.
    """

    def __init__(
        self,
        kernel: Kernel,
        carrier: Carrier,
        *,
        nd: Nd = ND_LOCAL,
        node: str = "",
        roles: frozenset[str] = frozenset(),
        credentials: Credentials | None = None,
        believes: bool = False,
        routes: bool = False,
        authorize: Authorize = _allow,
        congested: Callable[[], bool] = _never,
        descriptors: DescriptorCarrier | None = None,
        limits: Limits | None = None,
        stuck: Callable[[int], int] = _open,
        route: int = 0,
        serves: bool = True,
        final: bool = False,
    ) -> None:
        link = self._link = Link(kernel, carrier, nd, node, roles, credentials, congested, descriptors, stuck, route)
        sending = self._sending = SendingSide(link)
        serving = self._serving = ServingSide(link, believes, routes, authorize, Limits() if limits is None else limits, final)
        self._handlers: dict[int, Callable[[Buffer, Descriptors], None]] = {
            wire.SEND: serving.on_send,
            wire.REPLY: sending.on_reply,
            wire.READ: sending.on_read,
            wire.READ_DATA: serving.on_read_data,
            wire.WRITE: sending.on_write,
            wire.PULSE: serving.on_pulse,
            wire.UNBLOCK: serving.on_unblock,
            wire.DETACH: serving.on_detach,
            wire.DEATH: sending.on_death,
            wire.EVENT: sending.on_event,
        }
        if not serves:
            for kind in (wire.SEND, wire.READ_DATA, wire.PULSE, wire.UNBLOCK, wire.DETACH):
                del self._handlers[kind]

    @property
    def closed(self) -> bool:
        return self._link.closed

    @property
    def nd(self) -> Nd:
        return self._link.nd

    @property
    def node(self) -> str:
        return self._link.node

    @property
    def idle(self) -> bool:
        """Whether no connection of our clients uses this link."""
        return not self._sending.outlets

    def handle(self, kind: int, handler: Callable[[Buffer, Descriptors], None]) -> None:
        """Have *handler* called with messages of a kind that is not message passing's own. It may raise BadMessage."""
        self._handlers[kind] = handler

    def receive(self, view: Buffer, stream: int = 0, priority: int = 0, descriptors: Descriptors = (), route: int = 0) -> None:
        """One message from the carrier. *view* is ours from now on: the carrier does not use the memory again (nothing is copied here).

        Bytes that make no sense are counted and dropped. *descriptors* stay open as long as the sequence itself is referred to. What the
        message asks for is answered with *route*.
        """
        if self._link.closed:
            return
        handler = self._handlers.get(view[0]) if len(view) else None
        if handler is None:
            self._link.dropped["unknown kind"] += 1
            return
        self._link.route = route
        try:
            handler(view, descriptors)
        except BadMessage as error:
            self._link.dropped[str(error)] += 1

    def down(self, code: int) -> None:
        """The link is gone for good. Clients here get errno *code*, servers here are asked to let go and told of the disconnect.

        EHOSTDOWN for a node; for a process ESRCH, which is what QNX says to those blocked on a server that dies.
        """
        if not self._link.closed:
            self._link.closed = True
            self._sending.down(code)
            self._serving.down()

    def suspect(self, suspected: bool) -> None:
        """The carrier has heard nothing for a while, or hears again. While suspected, unblocked sends end at once instead of on answer."""
        self._link.suspected = suspected
        if suspected:
            self._sending.let_go()

    def routes_changed(self) -> None:
        """Some route may have got stuck: sends on it that are unblocked end, and all if it has failed. The servers are asked to let go."""
        self._sending.routes_changed()

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
        return self._sending.relay(connection, data, msglen, reply_len, priority, answerer, descriptors)

    def pulse(self, connection: Connection, code: int, value: int, priority: int) -> int:
        """`Remote.pulse`."""
        return self._sending.pulse(connection, code, value, priority)

    def detach(self, connection: Connection) -> None:
        """`Remote.detach`."""
        self._sending.detach(connection)

    def statistics(self) -> PeerStatistics:
        sending, serving = self._sending, self._serving
        return PeerStatistics(
            len(sending.outgoing),
            len(serving.incoming),
            len(sending.outlets),
            len(serving.inlets),
            serving.held,
            sending.sends,
            serving.served,
            serving.refused,
            dict(self._link.dropped),
        )
