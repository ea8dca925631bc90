"""The bridge: which frames go where. A pure machine: it takes batches and the time, and says what is to be sent and what is ours.

    received(port, batch) ─> Decision: for each port what leaves there, what goes up and where, BPDUs
    sent(port, batch)     ─> the same for what our own stack sends through a port, or through the bridge itself

As NetBSD and QNX do it: members keep their addresses. What is for the address of a member goes up on that member, whichever port it came
in on; a group goes up on the port that it came in on, and on to all others. What our stack sends through a member leaves where the
station is known to be. The bridge has an address of its own besides, by which it can be a station too.

Frames of one flow (source and destination) stay in order; a batch is sorted by flow once, and each flow is decided once. Frames are
forwarded as they are, tagged or not. Group addresses 01:80:c2:00:00:00 to 0f are not forwarded.

    too_short     no whole header                     bad_source   a group as the source
    own_source    our own address as the source: it circled, or is a forgery
    blocked       the spanning tree says no           same_port    the station is where the frame came from
    storm         over the bound of `stack.l2.storm`  flapping     from a station that moves too often, not at its home
    unlearned     (not dropped) no room for a station displaced    (a station, not a frame) given up for another
    no_port       nowhere to go: one port only, or those others are down
    span_port     came in on a port that only gets copies
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

from resmgr.errors import Misuse
from stack.core.statistics import Counters
from stack.frame import Frame
from stack.l2.engine import PORTS_MAX as PORTS_MAX  # both have as many
from stack.l2.stations import MAX_DEFAULT, TIMEOUT_DEFAULT, Learned, Stations
from stack.l2.storm import STORM_RATE, StormControl
from stack.wire.bpdu import GROUP, RESERVED
from stack.wire.ethernet import HEADER_SIZE, MAC_SIZE

_FLOW = 2 * MAC_SIZE
_unpack_flow = struct.Struct(f"{_FLOW}s").unpack_from


@attrs.define(eq=False)
class BridgePort:
    """A member. `learning` and `forwarding` are the spanning tree's; `up` is the link's."""

    number: int
    mac: bytes
    storm: StormControl
    up: bool = True
    learn: bool = True
    discover: bool = True
    """Frames to unknown stations leave here."""
    spans: bool = False
    """A span port: it gets a copy of all that the bridge receives, and what it receives is nobody's."""
    most: int = 0
    """Stations that may be learned here; 0: as many as there is room for."""
    learning: bool = True
    forwarding: bool = True
    tree: bool = False
    """It takes part in the spanning tree: BPDUs are its."""
    drops: Counters = attrs.Factory(Counters)
    received: int = 0
    forwarded: int = 0
    """Frames that others sent and that left here."""

    @property
    def open(self) -> bool:
        return self.up and self.forwarding and not self.spans


@attrs.define(eq=False)
class Decision:
    """What becomes of a batch. Frames are those of the batch."""

    out: dict[int, list[Frame]] = attrs.Factory(dict)
    """By port; the port that our own stack wanted is in it like others."""
    up: dict[int, list[Frame]] = attrs.Factory(dict)
    """For us, by the member on which they go up."""
    own: list[Frame] = attrs.Factory(list)
    """For the bridge as a station."""
    bpdus: list[Frame] = attrs.Factory(list)

    def send(self, port: int, frames: list[Frame]) -> None:
        if port in self.out:
            self.out[port] += frames
        else:
            self.out[port] = list(frames)

    def raise_on(self, port: int, frames: list[Frame]) -> None:
        if port in self.up:
            self.up[port] += frames
        else:
            self.up[port] = list(frames)


class Bridge:
    """See the head of this file. *mac*: the bridge's own address. *station*: groups go to the bridge as a station too."""

    def __init__(self, mac: bytes, maximum: int = MAX_DEFAULT, timeout: float = TIMEOUT_DEFAULT, station: bool = False) -> None:
        self.mac = mac
        self.station = station
        self.stations = Stations(maximum, timeout)
        self.ports: dict[int, BridgePort] = {}
        self.drops = Counters()
        """Of what our own stack sends through the bridge as a station."""
        self.news: list[tuple[bytes, int]] = []
        """Stations that were learned or have moved, with their ports, or were given up (port 0), since whoever drives took the list."""
        self._own: dict[bytes, int] = {mac: 0}
        """Our addresses: 0 for the bridge, else the port."""

    def add(self, mac: bytes, storm: int = STORM_RATE, wanted: Iterable[int] = ()) -> BridgePort:
        """A port, with the first free number of *wanted*, else the lowest free one. Misuse beyond PORTS_MAX."""
        number = next((one for one in (*wanted, *range(1, PORTS_MAX + 1)) if one not in self.ports), None)
        if number is None:
            raise Misuse(f"a bridge has {PORTS_MAX} ports at most")
        port = BridgePort(number, mac, StormControl(storm))
        self.ports[number] = port
        self._take_addresses()
        return port

    def remove(self, number: int) -> None:
        """With its stations."""
        del self.ports[number]
        self.stations.flush(number, statics=True)
        self._take_addresses()

    def readdress(self, number: int, mac: bytes) -> None:
        """The member has another address now."""
        self.ports[number].mac = mac
        self._take_addresses()

    def _take_addresses(self) -> None:
        self._own = {port.mac: port.number for port in self.ports.values()} | {self.mac: 0}
        for mac in self._own:
            self.stations.remove(mac)

    def is_own(self, address: bytes) -> bool:
        return address in self._own

    # Received

    def received(self, number: int, frames: list[Frame], now: float) -> Decision:
        """A batch came in on a port."""
        port = self.ports[number]
        decision = Decision()
        port.received += len(frames)
        if port.spans:
            port.drops.count("span_port", len(frames))
            return decision
        for key, flow in _flows(frames).items():
            if len(key) < _FLOW or len(flow[0]) < HEADER_SIZE:
                port.drops.count("too_short", len(flow))
            else:
                self._received_flow(port, key[:MAC_SIZE], key[MAC_SIZE:], flow, now, decision)
        for span in self.ports.values():
            if span.spans and span.up:
                decision.send(span.number, frames)
        for out, batch in decision.out.items():
            self.ports[out].forwarded += len(batch)
        return decision

    def _received_flow(self, port: BridgePort, to: bytes, source: bytes, flow: list[Frame], now: float, decision: Decision) -> None:
        if to[:5] == RESERVED and to[5] < 0x10:
            # Before all else: what keeps the network free of loops must not be lost to it.
            if to == GROUP and port.tree:
                decision.bpdus += flow
            else:
                decision.raise_on(port.number, flow)
                if to == GROUP and not any(one.tree for one in self.ports.values()):
                    # We take part in no spanning tree: those around us must see through us, or they make a loop that nobody knows of.
                    self._flood(port, port.storm.group(flow, now), len(flow), decision, True)
            return
        if source[0] & 1:
            port.drops.count("bad_source", len(flow))
            return
        if source in self._own:
            port.drops.count("own_source", len(flow))
            return
        if port.learn and port.learning:
            learned = self.stations.learn(source, port.number, now, port.most)
            if learned is not Learned.KNOWN and not self._learned(port, source, learned, len(flow)):
                return
        group = bool(to[0] & 1)
        if not port.forwarding:
            # As NetBSD: the port itself still is one of ours.
            if group or to == port.mac:
                decision.raise_on(port.number, flow)
            else:
                port.drops.count("blocked", len(flow))
        elif group:
            decision.raise_on(port.number, flow)
            if self.station:
                decision.own += flow
            self._flood(port, port.storm.group(flow, now), len(flow), decision, True)
        elif to in self._own:
            member = self._own[to]
            if member:
                decision.raise_on(member, flow)
            else:
                decision.own += flow
        else:
            self._to_station(port, to, flow, now, decision)

    def _learned(self, port: BridgePort, source: bytes, learned: Learned, frames: int) -> bool:
        """Something about *source* is not as before. Whether its frames go on."""
        for station, number in self.stations.evicted:
            self.ports[number].drops.count("displaced")
            self.news.append((station, 0))
        self.stations.evicted.clear()
        if learned is Learned.NO_ROOM:
            port.drops.count("unlearned", frames)
            return True
        self.news.append((source, self.stations.known[source].port))
        if learned is Learned.HELD:
            port.drops.count("flapping", frames)
            return False
        return True

    def _to_station(self, port: BridgePort, to: bytes, flow: list[Frame], now: float, decision: Decision) -> None:
        entry = self.stations.known.get(to)
        if entry is None:
            self._flood(port, port.storm.unknown(flow, now), len(flow), decision, False)
        elif entry.port == port.number:
            port.drops.count("same_port", len(flow))
        elif self.ports[entry.port].open:
            if not entry.proved:
                self.stations.prove(to, entry)
            decision.send(entry.port, flow)
        else:
            port.drops.count("blocked", len(flow))

    def _flood(self, port: BridgePort, flow: list[Frame], asked: int, decision: Decision, group: bool) -> None:
        if len(flow) < asked:
            port.drops.count("storm", asked - len(flow))
        if not flow:
            return
        sent = False
        for other in self.ports.values():
            if other is not port and other.open and (group or other.discover):
                decision.send(other.number, flow)
                sent = True
        if not sent and not group:
            port.drops.count("no_port", len(flow))

    # Sent by our own stack

    def sent(self, number: int, frames: list[Frame]) -> Decision:
        """Our stack sends through a member; 0: through the bridge itself. What is for one of our own addresses goes up there."""
        decision = Decision()
        for key, flow in _flows(frames).items():
            if len(key) < _FLOW:
                self._send(number, flow, decision)
                continue
            to = key[:MAC_SIZE]
            entry = self.stations.known.get(to)
            if to[:5] == RESERVED and to[5] < 0x10:
                self._send(number, flow, decision)
            elif entry is not None:
                if self.ports[entry.port].open:
                    decision.send(entry.port, flow)
                else:
                    self._drop(number, "blocked", len(flow))
            elif to in self._own:
                member = self._own[to]
                if member:
                    decision.raise_on(member, flow)
                else:
                    decision.own += flow
            else:
                self._send_to_all(number, flow, bool(to[0] & 1), decision)
        return decision

    def _send(self, number: int, flow: list[Frame], decision: Decision) -> None:
        """Through that port and no other, whatever the tree says; the bridge itself has none."""
        if number:
            decision.send(number, flow)
        else:
            self._drop(number, "too_short" if len(flow[0]) < _FLOW else "no_port", len(flow))

    def _send_to_all(self, number: int, flow: list[Frame], group: bool, decision: Decision) -> None:
        sent = False
        for port in self.ports.values():
            if port.open and (group or port.discover or port.number == number):
                decision.send(port.number, flow)
                sent = True
        if not sent:
            self._drop(number, "no_port", len(flow))

    def _drop(self, number: int, reason: str, frames: int) -> None:
        (self.ports[number].drops if number else self.drops).count(reason, frames)


def _flows(frames: list[Frame]) -> dict[bytes, list[Frame]]:
    """By both addresses, in order within each."""
    if len(frames) == 1:
        return {bytes(frames[0][:_FLOW]): frames}
    try:
        keys = [key for (key,) in map(_unpack_flow, frames)]
    except struct.error:  # one is shorter
        keys = [bytes(frame[:_FLOW]) for frame in frames]
    if keys and keys.count(keys[0]) == len(keys):
        return {keys[0]: frames}
    flows: dict[bytes, list[Frame]] = {}
    for key, frame in zip(keys, frames, strict=True):
        if key in flows:
            flows[key].append(frame)
        else:
            flows[key] = [frame]
    return flows
