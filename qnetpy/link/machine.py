"""All links of a node: frames in, frames out, and the life of each link from a hint to its end. Pure; docs/protocol/node.md is the page.

    hints (discovery) ---> attempts (handshake) ---> links (sessions + transport) ---> upcalls

The machine is driven by frames (`receive`), by the user (`send`, `hint`), by interfaces (`interface`, `interface_gone`) and by time
(`handle_timeout`). After any of them the caller sends what `transmit` yields and arms one timer for `next_timeout`. Upcalls run inside
these calls; they may call `send` and `hint`, not the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import attrs

from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.link import MOVES_PER_KEY, Link
from qnetpy.link.outcome import Established, Failed, PeerHint, Reason
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import Closed, MessageReceived
from qnetpy.link.wire import Address, Arrivals, sort_frames
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from stack.frame import Frame

BURST = 128
"""Packets sealed and handed to the driver in one call: enough to spread the cost of the call, few enough that the peer can begin."""
BURSTS_PER_TURN = 4
"""Per link, before others get their turn and acknowledgements are looked at."""
HINTS_MAX = 4096
"""Addresses called at once. Stops a flood of announcements from costing more than this table."""
CLOSE_COPIES = 3
RETRY_UNANSWERED = 2.0
RETRY_REFUSED = 15.0
"""Seconds until an address is called again after nobody answered, and after a refusal that only a person can change."""
RETRY_REKEY = 5.0


@attrs.frozen
class LinkTimers:
    """Seconds; docs/protocol/node.md."""

    heartbeat: float = 0.3
    suspect_after: float = 1.0
    down_after: float = 3.0


class Upcalls(Protocol):
    """What the machine tells its owner."""

    def link_up(self, link: Link, restarted: bool) -> None: ...

    def link_suspect(self, link: Link, reason: str) -> None: ...

    def link_back(self, link: Link) -> None: ...

    def link_down(self, link: Link, reason: str) -> None: ...

    def message(self, link: Link, stream: int, priority: int, data: Buffer) -> None: ...

    def refused(self, failed: Failed) -> None:
        """A handshake failed for a reason that people should hear of; at most once per address, reason and RETRY_REFUSED."""
        ...


@attrs.define
class _Hint:
    """An address that may be a node's. `name` is set once a node was authenticated there."""

    address: Address
    retry_at: float
    attempt: int = 0
    name: str = ""
    told: Reason | None = None


@attrs.define
class _Port:
    """An interface of ours."""

    mac: bytes
    mtu: int
    up: bool


class LinkMachine:
    """See the head of this file. `counters` are drops of received frames by reason."""

    def __init__(
        self,
        name: str,
        make_handshake: Callable[[LinkMachine], HandshakeMachine],
        ethertype: int,
        upcalls: Upcalls,
        *,
        timers: LinkTimers | None = None,
        transport: TransportConfig | None = None,
        rekey: RekeyPolicy | None = None,
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self.links: dict[str, Link] = {}
        self._handshake = make_handshake(self)
        self._type = ethertype.to_bytes(2, "big")
        self._upcalls = upcalls
        self._timers = LinkTimers() if timers is None else timers
        self._transport = TransportConfig() if transport is None else transport
        self._rekey = RekeyPolicy() if rekey is None else rekey
        self._ports: dict[str, _Port] = {}
        self._sessions: dict[int, Link] = {}
        self._hints: dict[Address, _Hint] = {}
        self._dirty: list[Link] = []
        self._last_words: list[tuple[str, bytes]] = []
        self._closed = False

    @property
    def handshake_counters(self) -> Counter[str]:
        """Frames and failures of handshakes by reason. The live object."""
        return self._handshake.counters

    # What the handshake asks

    def held(self, name: str, key: bytes, boot_id: bytes) -> int:
        """Transport id of our live link with that boot of that node; 0: none."""
        link = self.links.get(name)
        if link is None or link.peer.static_key != key or link.peer.boot_id != boot_id:
            return 0
        return link.transport_id

    def taken(self, name: str, key: bytes, now: float) -> bool:
        """Whether *name* belongs to a live link with another key."""
        link = self.links.get(name)
        return link is not None and link.peer.static_key != key and now - link.transport.last_received < self._timers.down_after

    # Interfaces

    def interface(self, name: str, mac: bytes, mtu: int, up: bool, now: float) -> None:
        """An interface is there, or changed."""
        before = self._ports.get(name)
        self._ports[name] = _Port(mac, mtu, up)
        for link in list(self.links.values()):
            if link.address[0] != name:
                continue
            link.prefix = self._prefix(link.address)
            if not up and (before is None or before.up):
                self._carrier_lost(link, now)
        if up and (before is None or not before.up):
            for hint in self._hints.values():
                if hint.address[0] == name:
                    hint.retry_at = min(hint.retry_at, now)
            for link in self.links.values():
                if link.address[0] == name:
                    self._ping(link, now)

    def interface_gone(self, name: str, now: float) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        for address in [address for address in self._hints if address[0] == name]:
            self.unhint(address, now)
        for link in list(self.links.values()):
            if link.address[0] == name:
                self._carrier_lost(link, now)

    def _carrier_lost(self, link: Link, now: float) -> None:
        if not self._move_away(link, now):
            self._suspect(link, f"carrier of {link.address[0]} lost")

    def _usable(self, address: Address) -> bool:
        port = self._ports.get(address[0])
        return port is not None and port.up

    def _prefix(self, address: Address) -> bytes:
        port = self._ports.get(address[0])
        return address[1] + (port.mac if port is not None else bytes(6)) + self._type

    # Hints

    def hint(self, address: Address, now: float) -> None:
        """A node may be at *address*."""
        if self._closed:
            return
        port = self._ports.get(address[0])
        if port is None or address[1] == port.mac:
            return
        hint = self._hints.get(address)
        if hint is None:
            if len(self._hints) >= HINTS_MAX:
                self.counters["hints_full"] += 1
                return
            hint = self._hints[address] = _Hint(address, now)
        else:
            hint.retry_at = min(hint.retry_at, now)
        self._call(hint, now)

    def unhint(self, address: Address, now: float) -> None:
        """Discovery withdrew *address*. A live link does not care."""
        hint = self._hints.pop(address, None)
        if hint is not None and hint.attempt:
            self._handshake.abandon(hint.attempt)

    def _call(self, hint: _Hint, now: float) -> None:
        """Begin a handshake with the hint's address, unless there is no need or one is under way."""
        if hint.attempt or now < hint.retry_at or not self._usable(hint.address):
            return
        if any(link.address == hint.address for link in self.links.values()) or hint.name in self.links:
            return
        hint.attempt = self._handshake.initiate(PeerHint(hint.address, hint.name), now)
        hint.retry_at = now + RETRY_UNANSWERED

    # Frames in

    def receive(self, interface: str, frames: Sequence[Frame], offset: int, now: float) -> None:
        """A batch of our ethertype from *interface*; *offset* is where the Ethernet header, tags included, ends. Frames are not kept."""
        if self._closed:
            return
        views: list[memoryview] = [frame if type(frame) is memoryview else memoryview(frame) for frame in frames]
        batch = sort_frames(views, offset)
        for arrivals in batch.data:
            link = self._sessions.get(arrivals.index)
            if link is None:
                self.counters["unknown_session"] += len(arrivals.numbers)
                continue
            # All frames of one session and path in one batch are taken to come from where the first does.
            self._data(link, arrivals, (interface, bytes(views[0][6:12])) if len(batch.data) == 1 else None, now)
        if batch.handshakes:
            for place, frame in batch.handshakes:
                self._handshake.receive(frame, (interface, bytes(views[place][6:12])), now)
            self._outcomes(now)
        if batch.malformed:
            self.counters["malformed"] += batch.malformed

    def _data(self, link: Link, arrivals: Arrivals, source: Address | None, now: float) -> None:
        packets = link.open(arrivals.index, arrivals)
        if not packets:
            self._mark(link)
            return
        if arrivals.path != link.path:
            if not link.newer(arrivals.path):
                self.counters["old_path"] += len(packets)
                return
            if source is None or not self._usable(source):
                self.counters["no_such_path"] += len(packets)
                return
            link.move(source, self._prefix(source), self._ports[source[0]].mtu, now, arrivals.path)
        if link.suspect:
            link.suspect = False
            self._upcalls.link_back(link)
        transport = link.transport
        transport.receive(arrivals.path, packets, now)
        self._events(link, now)
        self._mark(link)

    def _events(self, link: Link, now: float) -> None:
        message = self._upcalls.message
        for event in link.transport.events():
            if type(event) is MessageReceived:
                message(link, event.stream, event.priority, event.data)
            elif type(event) is Closed:
                self._flush_close(link, now)
                self._down(link, event.reason if event.by_peer else f"broke the protocol: {event.reason}", now)
                return

    # Handshake results

    def _outcomes(self, now: float) -> None:
        for event in self._handshake.events():
            if isinstance(event, Established):
                self._established(event, now)
            else:
                self._failed(event, now)

    def _established(self, event: Established, now: float) -> None:
        session, peer = event.session, event.peer
        for hint in self._hints.values():
            if hint.attempt and hint.attempt == event.attempt:
                hint.attempt = 0
            if hint.address == event.address:
                hint.name = peer.name
                hint.told = None
        link = self.links.get(peer.name)
        if link is not None and not (event.continued and event.transport_id == link.transport_id):
            same = link.peer.boot_id == peer.boot_id
            self._down(link, "began a new connection" if same else "restarted", now)
            link = None
        fresh = link is None
        if link is None:
            if not self._usable(event.address):
                session.close()
                return
            prefix = self._prefix(event.address)
            mtu = min(event.mtu, self._ports[event.address[0]].mtu)
            link = Link(peer, event.transport_id, event.address, prefix, mtu, self._transport, self._rekey, now)
            self.links[peer.name] = link
            if event.address not in self._hints and len(self._hints) < HINTS_MAX:
                # It called us before discovery told of it: call back if it is lost.
                self._hints[event.address] = _Hint(event.address, now + RETRY_UNANSWERED, name=peer.name)
        else:
            link.peer = peer
            link.attempt = 0
            link.moves = 0
            if event.address != link.address and self._usable(event.address) and (link.suspect or not self._usable(link.address)):
                link.move(event.address, self._prefix(event.address), self._ports[event.address[0]].mtu, now)
        for ended in link.sessions.install(session, now):
            self._sessions.pop(ended.local_index, None)
        self._sessions[session.local_index] = link
        if fresh:
            self._upcalls.link_up(link, event.restarted)
        # The first packet under the new keys confirms them to a peer that waits for that.
        self._ping(link, now)

    def _failed(self, event: Failed, now: float) -> None:
        unanswered = event.reason in (Reason.NO_ANSWER, Reason.UNCONFIRMED, Reason.SUPERSEDED)
        for link in self.links.values():
            if link.attempt and link.attempt == event.attempt:
                link.attempt = 0
                link.retry_at = now + RETRY_REKEY
        hint = next((hint for hint in self._hints.values() if hint.attempt and hint.attempt == event.attempt), None)
        if hint is None:
            hint = self._hints.get(event.address)
        else:
            hint.attempt = 0
            hint.retry_at = now + (RETRY_UNANSWERED if unanswered else RETRY_REFUSED)
        if unanswered:
            return
        if hint is None or hint.told is not event.reason:
            if hint is not None:
                hint.told = event.reason
            self._upcalls.refused(event)

    # Frames out

    def send(self, link: Link, stream: int, parts: Sequence[Buffer], priority: int, now: float) -> None:
        """Queue a message; it goes out with the next `transmit`. On a link that is down it is dropped: its owner was told."""
        if link.alive and not link.transport.closed:
            link.transport.send(stream, parts, priority, now)
            self._mark(link)

    def _mark(self, link: Link) -> None:
        if not link.dirty and link.alive:
            link.dirty = True
            self._dirty.append(link)

    def _ping(self, link: Link, now: float) -> None:
        link.transport.ping(now)
        self._mark(link)

    @property
    def pending(self) -> bool:
        """`transmit` has more: call it again soon."""
        return bool(self._dirty)

    def transmit(self, now: float) -> Iterator[tuple[str, list[bytes]]]:
        """Batches of whole frames, by interface. Bounded per call; see `pending`. Frames are the caller's."""
        last_words, self._last_words = self._last_words, []
        for interface, frame in last_words:
            yield interface, [frame]
        for (interface, station), frame in self._handshake.transmit():
            if interface in self._ports:
                yield interface, [self._prefix((interface, station)) + frame]
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.dirty = False
            if not link.alive:
                continue
            for _ in range(BURSTS_PER_TURN):
                frames = self._burst(link, now)
                if not frames:
                    break
                yield link.address[0], frames
            else:
                self._mark(link)

    def _burst(self, link: Link, now: float) -> list[bytes]:
        session = link.sessions.current
        if session is None:
            return []
        limit = min(BURST, session.left)
        if limit <= 0:
            return []
        number, packets = link.transport.transmit(link.path, now, limit)
        if not packets:
            return []
        link.last_sent = now
        return session.seal(link.prefix, link.path, number, packets)

    # Time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        times: list[float] = []
        when = self._handshake.next_timeout()
        if when is not None:
            times.append(when)
        timers = self._timers
        for link in self.links.values():
            heard = link.transport.last_received
            times.append(heard + (timers.down_after if link.suspect else timers.suspect_after))
            times.append(link.last_sent + timers.heartbeat)
            when = link.transport.next_timeout()
            if when is not None:
                times.append(when)
        for hint in self._hints.values():
            if not hint.attempt and hint.name not in self.links and self._usable(hint.address):
                times.append(hint.retry_at)
        return min(times, default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        if self._closed:
            return
        self._handshake.handle_timeout(now)
        self._outcomes(now)
        for link in list(self.links.values()):
            self._tend(link, now)
        for hint in list(self._hints.values()):
            if now >= hint.retry_at:
                if hint.name in self.links:
                    hint.retry_at = now + RETRY_UNANSWERED
                self._call(hint, now)

    def _tend(self, link: Link, now: float) -> None:
        timers, transport = self._timers, link.transport
        # Compared as `next_timeout` adds them up: a difference may round to the other side, and the timer would stand still.
        heard = transport.last_received
        if now >= heard + timers.down_after:
            self._down(link, "silent", now)
            return
        if now >= heard + timers.suspect_after and not link.suspect:
            self._move_away(link, now)
            self._suspect(link, "silent")
        if now >= link.last_sent + timers.heartbeat:
            link.last_sent = now
            self._ping(link, now)
            self._renew(link, now)
        when = transport.next_timeout()
        if when is not None and when <= now:
            transport.handle_timeout(now)
            self._events(link, now)
            self._mark(link)
        for ended in link.sessions.expire(now):
            self._sessions.pop(ended.local_index, None)

    def _renew(self, link: Link, now: float) -> None:
        if link.attempt or now < link.retry_at or not self._usable(link.address):
            return
        if link.sessions.rekey_due(now) or link.moves >= MOVES_PER_KEY:
            link.attempt = self._handshake.initiate(PeerHint(link.address, link.name), now)
        elif not link.sessions.usable(now):
            self._down(link, "keys used up", now)

    # Ends

    def _suspect(self, link: Link, reason: str) -> None:
        if not link.suspect:
            link.suspect = True
            self._upcalls.link_suspect(link, reason)

    def _move_away(self, link: Link, now: float) -> bool:
        """Go on over another interface through which this node was seen; False if there is none."""
        if link.moves >= MOVES_PER_KEY:
            return False
        for hint in self._hints.values():
            if hint.name == link.name and hint.address != link.address and self._usable(hint.address):
                link.move(hint.address, self._prefix(hint.address), self._ports[hint.address[0]].mtu, now)
                self._ping(link, now)
                return True
        return False

    def _down(self, link: Link, reason: str, now: float) -> None:
        if not link.alive:
            return
        link.alive = False
        if self.links.get(link.name) is link:
            del self.links[link.name]
        if link.attempt:
            self._handshake.abandon(link.attempt)
        for ended in link.sessions.close():
            self._sessions.pop(ended.local_index, None)
        for hint in self._hints.values():
            if hint.name == link.name:
                hint.retry_at = min(hint.retry_at, now)
        self._upcalls.link_down(link, reason)

    def _flush_close(self, link: Link, now: float) -> None:
        """Frames of a CLOSE that the transport wants to say, sealed while there are keys."""
        session = link.sessions.current
        if session is None or session.left <= 0 or link.path not in link.transport.paths():
            return
        number, packets = link.transport.transmit(link.path, now, 1)
        if packets:
            self._last_words += [(link.address[0], frame) for frame in session.seal(link.prefix, link.path, number, packets)]

    def drop(self, link: Link, reason: str, now: float) -> None:
        """End one link: tell the node, wipe the keys."""
        if not link.alive:
            return
        final = link.transport.close(reason, now)
        session = link.sessions.current
        if session is not None and session.left > 0:
            for path, number, packet in final:
                frames = session.seal(link.prefix, path, number, [packet])
                self._last_words += [(link.address[0], frame) for frame in frames * CLOSE_COPIES]
        self._down(link, reason, now)

    def close(self, now: float) -> None:
        """Say goodbye to every node and end. One more `transmit` sends the last words."""
        if self._closed:
            return
        for link in list(self.links.values()):
            self.drop(link, "left", now)
        self._hints.clear()
        self._dirty.clear()
        self._closed = True
        self._sessions.clear()


__all__ = ["Link", "LinkMachine", "LinkTimers", "Misuse", "Upcalls"]
