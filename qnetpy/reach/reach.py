"""The runner of the UDP bearer: hints that name IP endpoints become addresses to call, and up nodes tell each other of endpoints.

    discovery: Hint(addresses, port) -+                       +-> station on each UDP interface -> LinkMachine.hint
    gossip from up nodes -------------+-> WantedEndpoints ----+
    LinkMachine: node up at (interface, station) -> GossipTable -> gossip to up nodes

Gossip is a message to the node itself, channel (PID_SYSTEM, CHID_GOSSIP), over the link as any other, so it is authenticated and encrypted.
It is sent to a node that comes up (all that we know), to all when our own endpoints change, about a node that is news (after a random
wait, and not if another told us of it meanwhile: on a network with many nodes one of them speaks), and every minute to one node
at random, which mends what was missed. A node without a UDP interface tells what others told it of themselves and calls nobody.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable

import attrs

from qnetpy.channels import CHID_GOSSIP
from qnetpy.discovery.hint import Hint, Interface
from qnetpy.reach.gossip import AGE_MAX, MESSAGE_MAX, PER_NODE_MAX, PER_TELLER_MAX, GossipTable, Told, pack, parse
from qnetpy.reach.wanted import Tell, WantedEndpoints
from resmgr.bucket import TokenBucket
from resmgr.channel import ND_LOCAL, PID_SYSTEM, Connection, Credentials, Kernel, Message, Nd
from resmgr.dispatch import Buffer, Dispatch, Timer
from resmgr.errors import BadMessage
from resmgr.system import System
from stack.core import ifnet
from stack.core.module import Random
from stack.wire.endpoint import Endpoint, endpoint

log = logging.getLogger(__name__)

ROUND = 60.0
"""Seconds between looks at what is old, each with all that we know to one node at random."""
SOON = 0.05
"""Seconds for which news is collected."""
WAIT_PER_NODE = 0.02
WAIT_MAX = 2.0
"""Seconds of the longest wait before a node is told of, per node that is up, and at most."""
HINTED_MAX = 1024
"""Endpoints called because of gossip, of all tellers together."""
ANNOUNCED_MAX = 768
"""Endpoints called because of mDNS. Stops a stranger on one network from taking the places of gossip and of configured peers."""
PER_HOST_MAX = 64
"""Of either, with one IP address. Stops a lying member, or a stranger, from making all nodes call all ports of one host."""
AGAIN = 10.0
"""Seconds from one call of an endpoint to the next that its own node's word causes: more than a call takes. Stops a lying member from
making us call somebody without end."""
MESSAGES_BURST = 100
MESSAGES_RATE = 5.0
"""Messages taken from one node, after a burst, per second: each may cost milliseconds. What is refused comes again in a round."""

Where = Callable[[str], "Endpoint | None"]


@attrs.define(eq=False)
class _Peer:
    """An up node. `due`: names of nodes to tell it of."""

    nd: Nd
    connection: Connection | None = None
    busy: bool = False
    due: set[str] = attrs.Factory(set)
    messages: TokenBucket = attrs.Factory(lambda: TokenBucket(MESSAGES_RATE, MESSAGES_BURST))


@attrs.define(eq=False)
class _Places:
    """What one hint named. `announced`: over mDNS."""

    announced: bool
    endpoints: list[Endpoint] = attrs.Factory(list)


@attrs.define(eq=False)
class _Hinted:
    teller: str
    until: float
    called: float
    """When what was told last made us call it."""


class Reach:
    """See the head of this file. *where* says at which endpoint an up node is reached now, None when not by UDP."""

    def __init__(
        self, dispatch: Dispatch, system: System, own: str, hint: Tell, unhint: Tell, where: Where, random: Random, counters: Counter[str]
    ) -> None:
        self._dispatch = dispatch
        self._kernel: Kernel = system.kernel
        self._own = own
        self._where = where
        self._random = random
        self._counters = counters
        self.wanted = WantedEndpoints(hint, unhint)
        self.table = GossipTable()
        self._interfaces: dict[str, ifnet.Interface] = {}
        self._own_places: tuple[Endpoint, ...] = ()
        self._of_hint: dict[tuple[str, bytes], _Places] = {}
        """By interface and token: a hint that changed is one hint."""
        self._announced = 0
        """How many of those are from mDNS."""
        self._peers: dict[str, _Peer] = {}
        self._hinted: dict[Endpoint, _Hinted] = {}
        self._called_again: dict[str, tuple[float, int]] = {}
        """Of nodes that are up: since when, and how many of their endpoints were called again by their own word."""
        self._counts: Counter[str] = Counter()
        """Of those, by `node NAME`; of those and of announced ones, by `host ADDRESS`."""
        self._spread: dict[str, Timer] = {}
        """News about nodes, waiting."""
        self._flush: Timer | None = None
        self._round: Timer | None = None
        self._closed = False
        self._channel = self._kernel.channel(self._receive, chid=CHID_GOSSIP, first_part=MESSAGE_MAX)
        system.guard(self._channel)

    # Interfaces

    def interface(self, interface: ifnet.Interface) -> None:
        """An interface of the stack is there, or changed."""
        if interface.endpoints is None:
            return
        self._interfaces[interface.name] = interface
        self.wanted.interface(interface.name, interface.endpoints)
        self._look_at_own()

    def interface_gone(self, name: str) -> None:
        if self._interfaces.pop(name, None) is not None:
            self.wanted.interface_gone(name)
            self._look_at_own()

    def _look_at_own(self) -> None:
        found = [place for one in self._interfaces.values() if one.endpoints is not None for place in one.endpoints.local()]
        places = tuple(place for place in found if place.is_routable())[:PER_NODE_MAX]
        if places != self._own_places:
            self._own_places = places
            for peer in self._peers.values():
                peer.due.add(self._own)
            self._send_soon()

    # Hints of discovery

    def hint(self, hint: Hint) -> None:
        """A node may be at the IP addresses of *hint*."""
        announced = hint.expiry < math.inf
        places = _Places(announced)
        for place in endpoints(hint):
            at = f"host {place.address}"
            if announced and (self._announced >= ANNOUNCED_MAX or self._counts[at] >= PER_HOST_MAX):
                self._counters["announced_over_cap"] += 1
            elif self.wanted.want(place):
                places.endpoints.append(place)
                if announced:
                    self._announced += 1
                    self._counts[at] += 1
        # The new ones first: an endpoint that is in both is not let go in between.
        self.hint_gone(hint)
        if places.endpoints:
            self._of_hint[hint.interface, hint.token] = places

    def hint_gone(self, hint: Hint) -> None:
        places = self._of_hint.pop((hint.interface, hint.token), _Places(False))
        for place in places.endpoints:
            self.wanted.drop(place)
            if places.announced:
                self._announced -= 1
                self._count_less(f"host {place.address}")

    def _count_less(self, what: str) -> None:
        self._counts[what] -= 1
        if not self._counts[what]:
            del self._counts[what]

    # Nodes

    def node_up(self, name: str, nd: Nd) -> None:
        """A link to that node is up."""
        self.node_down(name)
        peer = self._peers[name] = _Peer(nd)
        peer.due = {self._own, *(one.name for one in self.table.told(self._dispatch.now(), without=name))}
        self._saw(name, self._where(name))
        self._send_soon()

    def node_down(self, name: str) -> None:
        self._called_again.pop(name, None)
        peer = self._peers.pop(name, None)
        if peer is not None and peer.connection is not None:
            self._kernel.detach(peer.connection)

    def _saw(self, name: str, where: Endpoint | None) -> None:
        if where is not None and self.table.saw(name, where, self._dispatch.now()) and name not in self._spread and not self._closed:
            longest = min(WAIT_MAX, WAIT_PER_NODE * len(self._peers))
            share = int.from_bytes(self._random(2), "big") / 65536
            self._spread[name] = self._dispatch.call_at(self._dispatch.now() + SOON + share * longest, lambda: self._news(name))

    def _news(self, name: str) -> None:
        self._spread.pop(name, None)
        for other, peer in self._peers.items():
            if other != name:
                peer.due.add(name)
        self._send_soon()

    # Telling

    def _send_soon(self) -> None:
        if self._closed or not (self._interfaces or len(self.table)):
            return  # nobody here has the bearer: nothing to tell, nothing that grows old
        if self._round is None:
            self._round = self._dispatch.call_at(self._dispatch.now() + ROUND, self._go_round)
        if self._flush is None:
            self._flush = self._dispatch.call_at(self._dispatch.now() + SOON, self._send)

    def _send(self) -> None:
        self._flush = None
        for name, peer in list(self._peers.items()):
            if peer.due and not peer.busy:
                self._tell(name, peer)

    def _tell(self, name: str, peer: _Peer) -> None:
        entries = [Told(self._own, place, 0) for place in self._own_places] if self._own in peer.due else []
        entries += self.table.told(self._dispatch.now(), name, peer.due - {self._own})
        peer.due.clear()
        if not entries:
            return
        if peer.connection is None:
            peer.connection = self._kernel.connect(peer.nd, PID_SYSTEM, CHID_GOSSIP, Credentials(0, 0))
        peer.busy = True
        self._counters["gossip_sent"] += 1

        def done(status: int, reply: Buffer) -> None:
            peer.busy = False
            if status < 0:
                self._counters["gossip_failed"] += 1
            if peer.due:
                self._send_soon()

        peer.connection.submit([pack(entries)], 0, done)

    def _go_round(self) -> None:
        """What is old goes, what is up stays, and somebody hears all that we know."""
        now = self._dispatch.now()
        self._round = None
        for name in self._peers:
            self._saw(name, self._where(name))
            self.table.refresh(name, now)
        self.table.expire(now)
        for place, hinted in list(self._hinted.items()):
            if hinted.until <= now:
                del self._hinted[place]
                self._count_less(f"node {hinted.teller}")
                self._count_less(f"host {place.address}")
                self.wanted.drop(place)
        if self._peers:
            names = list(self._peers)
            chosen = self._peers[names[int.from_bytes(self._random(4), "big") % len(names)]]
            chosen.due = {self._own, *(one.name for one in self.table.told(now))}
        self._send_soon()

    # Hearing

    def _receive(self, message: Message) -> None:
        """The channel's handler."""
        teller = message.info.node
        if message.info.nd == ND_LOCAL or not message.info.credentials.of_daemon or teller not in self._peers:
            message.error(errno.EPERM)
            return
        if message.msglen > MESSAGE_MAX or message.msglen != len(message.data):
            message.error(errno.EMSGSIZE)
            return
        if not self._peers[teller].messages.take(self._dispatch.now()):
            self._counters["gossip_too_often"] += 1
            message.error(errno.EAGAIN)
            return
        try:
            entries = parse(message.data)
        except BadMessage:
            self._counters["gossip_malformed"] += 1
            message.error(errno.EBADMSG)
            return
        message.reply(0)
        per_name = Counter[str]()
        for one in entries:
            per_name[one.name] += 1
            if per_name[one.name] <= PER_NODE_MAX and one.age <= AGE_MAX:
                self._heard(teller, one)
            else:
                self._counters["gossip_over_cap"] += 1

    def _heard(self, teller: str, told: Told) -> None:
        name = told.name
        if name == self._own:
            return
        if name == teller:
            self._saw(name, told.endpoint)
        else:
            if name in self._spread and self.table.knows(name, told.endpoint):
                # Somebody else has told what we would; who is not up with that one will hear in a round.
                self._spread.pop(name).cancel()
            if name in self._peers:
                return
        if not self._interfaces:
            return
        now = self._dispatch.now()
        until = now + AGE_MAX - told.age
        known = self._hinted.get(told.endpoint)
        if known is not None:
            known.until = max(known.until, until)
            if name == teller and now >= known.called + AGAIN and self._may_call_again(teller, now):
                # It is up, and says that it is there: what did not answer for long, and is called ever more rarely, may do so now.
                known.called = now
                self.wanted.again(told.endpoint)
            return
        if told.endpoint in self._own_places:
            return
        by, at = f"node {teller}", f"host {told.endpoint.address}"
        if len(self._hinted) >= HINTED_MAX or self._counts[by] >= PER_TELLER_MAX or self._counts[at] >= PER_HOST_MAX:
            self._counters["gossip_over_cap"] += 1
            return
        if self.wanted.want(told.endpoint):
            self._hinted[told.endpoint] = _Hinted(teller, until, now)
            self._counts.update((by, at))
            log.debug("gossip: node %s tells that %s may be at %s", teller, name, told.endpoint)

    def _may_call_again(self, teller: str, now: float) -> bool:
        """No node has more than PER_NODE_MAX of its endpoints called again at a time."""
        since, count = self._called_again.get(teller, (-math.inf, 0))
        if now >= since + AGAIN:
            since, count = now, 0
        if count >= PER_NODE_MAX:
            self._counters["gossip_over_cap"] += 1
            return False
        self._called_again[teller] = since, count + 1
        return True

    def sizes(self) -> dict[str, int]:
        """For leak checks and for people."""
        return {"endpoints_wanted": len(self.wanted), "endpoints_by_gossip": len(self._hinted), "endpoints_to_tell": len(self.table)} | (
            {"endpoints_refused": self.wanted.refused} if self.wanted.refused else {}
        )

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._flush, self._round, *self._spread.values()):
            if timer is not None:
                timer.cancel()
        for name in list(self._peers):
            self.node_down(name)
        self._channel.destroy()
        self._of_hint.clear()
        self._hinted.clear()
        self.wanted.clear()


def endpoints(hint: Hint) -> list[Endpoint]:
    """The endpoints that *hint* names, with scopes of this machine's interfaces."""
    found = []
    for text in hint.addresses:
        address, _, scope = text.partition("%")
        try:
            made = endpoint(address, hint.port, 0)
            if made.is_link_local:
                made = endpoint(address, hint.port, socket.if_nametoindex(scope or hint.interface))
        except (ValueError, OSError):
            continue
        found.append(made)
    return found


def discovery_interfaces(interfaces: Iterable[ifnet.Interface]) -> dict[str, Interface]:
    """On which of the machine's interfaces nodes are to be looked for, and how we are reached there, from the stack's *interfaces*."""
    every = list(interfaces)
    found = {one.name: Interface(one.name, one.mac) for one in every if one.endpoints is None}
    for one in every:
        if one.endpoints is not None:
            for name in one.endpoints.local_interfaces():
                known = found.get(name, Interface(name, b""))
                if not known.port:
                    found[name] = attrs.evolve(known, port=one.endpoints.port)
    return found
