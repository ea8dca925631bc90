"""All links of a node: frames in, frames out, and the life of each link from a hint to its end. Pure; docs/protocol/node.md is the page.

    hints (discovery) ---> calls (handshakes) ---> links (sessions + transport) ---> upcalls

The machine is driven by frames (`receive`), by the user (`send`, `hint`), by interfaces (`interface`, `interface_gone`) and by time
(`handle_timeout`). After any of them the caller sends what `transmit` yields and arms one timer for `next_timeout`. Upcalls run inside
these calls; they may call `send`, `hint` and `set_identity`, not the others. What a call costs depends on what it touches, not on how many
links there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from qnetpy.identity.authority import NodeIdentity
from qnetpy.link.calls import UNANSWERED, Calls, Hint
from qnetpy.link.deadlines import Deadlines
from qnetpy.link.ethernet import is_individual, source
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.link import Link, LinkPath
from qnetpy.link.outcome import Established, Failed, PeerHint, Reason
from qnetpy.link.pathindex import PathIndex
from qnetpy.link.paths import Paths
from qnetpy.link.ports import Port, Ports
from qnetpy.link.session import RekeyPolicy, Session
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import Closed, MessageReceived
from qnetpy.link.upcalls import LinkTimers, Upcalls
from qnetpy.link.wire import Address, Arrivals, sort_frames, sources_of
from resmgr.dispatch import Buffer
from stack.frame import Frame

BURST: Final = 64
BURST_BYTES: Final = 192 << 10
BURST_LEAST: Final = 8
"""Packets sealed and handed to the driver in one call: as many as make BURST_BYTES, so that they stay in the processor's cache from the
first pass to the last; at least and at most so many. The peer can begin with them meanwhile. A turn costs as much as sealing a dozen."""
BURST_BRIEF: Final = 8
"""Packets, when the rest is sent in the next turn anyway: those that go first."""
CLOSE_COPIES: Final = 3
HEARTBEAT_SECOND: Final = 1.25
"""The node with the greater name waits so much longer before it pings."""
RETRY_REKEY: Final = 5.0
"""Seconds until new keys are asked for again after a handshake for them failed."""
RENEW_CHECK: Final = 1.0
"""Seconds between looks at whether a link's keys are due for renewal."""


def _any_way(name: str) -> int:
    return 0


class LinkMachine:
    """See the head of this file. `counters` are drops of received frames by reason, those of sessions in use not yet included (`drops`)."""

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
        routes: Callable[[str], int] = _any_way,
    ) -> None:
        """*routes*: of messages to the node of that name that have none of their own."""
        self.name = name
        self.counters: Counter[str] = Counter()
        self.links: dict[str, Link] = {}
        self._ports = Ports(ethertype)
        self._handshake = make_handshake(self)
        self._handshake_at: float | None = None
        self._handshake_touched = True
        self.index = PathIndex(self.links)
        self._calls = Calls(self._handshake, self._ports.usable, self.index.linked, self.index.wanting, self.counters)
        self._paths = Paths(self._ports, self._calls, self.index, self.counters, self._handshake.random, upcalls.path_changed)
        self._upcalls = upcalls
        self._timers = LinkTimers() if timers is None else timers
        self._suspect_after = self._timers.suspect_after
        self._transport = TransportConfig() if transport is None else transport
        self._rekey = RekeyPolicy() if rekey is None else rekey
        self._routes = routes
        self._sessions: dict[int, Link] = {}
        self._dirty: list[Link] = []
        self._touched: list[Link] = []
        """Links whose deadline may have changed, beside those in `_dirty`."""
        self._due: Deadlines[Link] = Deadlines()
        self._last_words: list[tuple[str, bytes]] = []
        self._closed = False

    @property
    def handshake_counters(self) -> Counter[str]:
        """Frames and failures of handshakes by reason. The live object."""
        return self._handshake.counters

    def sessions(self) -> list[Session]:
        """All whose keys open frames now."""
        return [one for link in self.links.values() for one in link.sessions.held]

    def drops(self) -> dict[str, int]:
        """Received frames that were dropped since the start, by reason."""
        drops = Counter(self.counters)
        for session in self.sessions():
            drops.update(session.refused())
        return {reason: count for reason, count in sorted(drops.items()) if count}

    def set_identity(self, identity: NodeIdentity, now: float) -> None:
        """Show and trust that from the next handshake on; the name, key and secret are the same. May be called in an upcall."""
        self._handshake.set_identity(identity)
        self._calls.identity_changed(now)

    def begin_anew(self, boot_id: bytes, reason: str, now: float) -> None:
        """Forget all sessions and handshakes, without a word under keys that a copy of this process may have, and be another boot."""
        self._handshake_touched = True
        self._handshake.begin_anew(boot_id, now)
        for link in list(self.links.values()):
            self._down(link, reason, now)
        self._outcomes(now)

    def rekey(self, reason: str) -> None:
        """Ask every link's other end for new keys soon; the old ones are in use until then."""
        for link in self.links.values():
            link.sessions.renew(reason)

    def sizes(self) -> dict[str, int]:
        """How much of everything there is at the moment."""
        sizes = {
            "links": len(self.links),
            "sessions": len(self._sessions),
            "hints": len(self._calls),
            "calls": self._handshake.calling,
            "half_open": self._handshake.half_open,
            "timers": len(self._due),
            "paths": sum(len(link.paths) for link in self.links.values()),
        }
        for link in self.links.values():
            told = link.transport.statistics()
            for name in ("backlog", "unacknowledged", "outgoing_streams", "incomplete", "waiting"):
                sizes[name] = sizes.get(name, 0) + getattr(told, name)
        return sizes

    # What the handshake asks

    def held(self, name: str, key: bytes, boot_id: bytes) -> int:
        """Transport id of our live link with that boot of that node; 0: none."""
        link = self.links.get(name)
        if link is None or link.peer.static_key != key or link.peer.boot_id != boot_id:
            return 0
        return link.transport_id

    def taken(self, name: str, key: bytes, now: float) -> bytes:
        """The key of a live link of *name* with another key than this; b"": there is none."""
        link = self.links.get(name)
        if link is None or link.peer.static_key == key or now - link.transport.last_received >= self._timers.down_after:
            return b""
        return link.peer.static_key

    def mtu(self, interface: str) -> int:
        """What an interface of ours takes."""
        return self._ports.mtu(interface)

    # Interfaces

    def interface(self, name: str, station: bytes, mtu: int, up: bool, now: float, shared: bool = True) -> None:
        """An interface is there, or changed: our address on it, the longest frame it takes, `Port.shared`."""
        before = self._ports.get(name)
        port = self._ports[name] = Port(station, mtu, up, self._ports.number(name), shared)
        for link in list(self.links.values()):
            self._paths.interface(link, name, before, port, now)
            self._mark(link)
            if not up and (before is None or before.up):
                self._carrier_lost(link, name, now)
        if up and (before is None or not before.up):
            self._handshake_touched = True
            self._calls.interface_up(name, now)
            self._outcomes(now)

    def interface_gone(self, name: str, now: float) -> None:
        if self._ports.pop(name, None) is None:
            return
        self._handshake_touched = True
        self._calls.interface_gone(name)
        for link in list(self.links.values()):
            self._paths.interface_gone(link, name, now)
            self._mark(link)
            self._carrier_lost(link, name, now)

    def port_number(self, name: str) -> int:
        """The number of our interface of that name, there or not; 0 when there were too many."""
        return self._ports.number(name)

    @property
    def ports(self) -> list[str]:
        """The interfaces that are there."""
        return list(self._ports)

    def _carrier_lost(self, link: Link, name: str, now: float) -> None:
        if not any(self._ports.usable(path.address) for path in link.paths.values()):
            self._suspect(link, f"carrier of {name} lost", now)

    # Hints

    def hint(self, address: Address, now: float) -> None:
        """A node may be at *address*."""
        if self._closed:
            return
        port = self._ports.get(address[0])
        if port is None or address[1] == port.station or not is_individual(address[1]):
            return
        self._handshake_touched = True
        hint = self._calls.hint(address, now)
        if hint.attempt and hint.name and hint.name not in self.links:
            self._upcalls.calling(hint.name)
        self._outcomes(now)

    def unhint(self, address: Address, now: float) -> None:
        """Discovery withdrew *address*. A live link does not care."""
        self._handshake_touched = True
        self._calls.unhint(address)

    def boot_at(self, address: Address) -> bytes:
        """The boot of the node that was authenticated at *address*, if there is a link to it; b"": there is none."""
        link = self.links.get(self._calls.owner(address))
        return b"" if link is None else link.peer.boot_id

    # Frames in

    def receive(self, interface: str, frames: Sequence[Frame], offset: int, now: float) -> None:
        """A batch of our ethertype from *interface*; *offset* is where the Ethernet header, tags included, ends. Frames are not kept."""
        if self._closed:
            return
        views: list[memoryview] = [frame if type(frame) is memoryview else memoryview(frame) for frame in frames]
        batch = sort_frames(views, offset)
        if batch.handshakes:
            # First: the DATA behind a CONFIRM, or a FINAL, is under the keys that it makes known.
            self._shake(interface, views, batch.handshakes, now)
        for arrivals in batch.data:
            link = self._sessions.get(arrivals.index)
            if link is None:
                self.counters["unknown_session"] += len(arrivals.numbers)
                continue
            packets = link.open(arrivals.index, arrivals)
            if not packets:
                continue
            if link.sessions.coming:
                self._ended(link.sessions.heard(arrivals.index, now))
            path = link.paths.get(arrivals.path)
            if path is None or not path.state.valid:
                packets = self._unproven(link, path, interface, views, offset, arrivals, packets, now)
            if packets:
                if arrivals.path in link.silent:
                    station = sources_of(views, offset, arrivals)[packets[0][0]]
                    self._paths.moved(link, arrivals.path, (interface, station), now)
                self._data(link, arrivals.path, packets, now)
        if self._handshake_touched:
            self._outcomes(now)
        for place, frame in batch.solicitations:
            self._upcalls.solicited((interface, source(views[place])), frame)
        if batch.malformed:
            self.counters["malformed"] += batch.malformed

    def _shake(self, interface: str, views: list[memoryview], handshakes: list[tuple[int, memoryview]], now: float) -> None:
        self._handshake_touched = True
        for place, frame in handshakes:
            port = self._ports.get(interface)
            station = source(views[place])
            if port is None or not is_individual(station):
                # It would be answered to everybody.
                self.counters["group_source"] += 1
            else:
                self._handshake.receive(frame, (interface, station), now)
        self._outcomes(now)

    def _data(self, link: Link, path: int, packets: list[tuple[int, bytes]], now: float) -> None:
        """Authentic new packets of a path of the link."""
        if link.suspect:
            link.suspect = False
            self._upcalls.link_back(link)
        link.transport.receive(path, packets, now)
        self._events(link, now)
        self._mark(link)

    def _events(self, link: Link, now: float) -> None:
        message = self._upcalls.message
        for event in link.transport.events():
            if type(event) is MessageReceived:
                message(link, event.stream, event.priority, event.data, event.route)
            elif type(event) is Closed:
                if event.by_peer:
                    self._down(link, event.reason, now)
                else:
                    self.counters["protocol_errors"] += 1
                    self._last_word(link, "", 1, now)
                    self._down(link, f"broke the protocol: {event.reason}", now)
                return
            else:
                self._paths.event(link, event, now)

    def _unproven(
        self,
        link: Link,
        path: LinkPath | None,
        interface: str,
        views: list[memoryview],
        offset: int,
        arrivals: Arrivals,
        packets: list[tuple[int, bytes]],
        now: float,
    ) -> list[tuple[int, bytes]]:
        """Packets under a number that is no path, or one without proof: those that begin a path, or come from where it leads."""
        stations = sources_of(views, offset, arrivals)
        sources = [(interface, stations[number]) for number, _ in packets]
        if path is not None:
            return self._paths.from_there(path, sources, packets)
        return packets if self._paths.accept(link, arrivals.path, sources[0], packets, now) else []

    # Handshake results

    def _outcomes(self, now: float) -> None:
        for event in self._handshake.events():
            callers = self._calls.ended(event.attempt) if event.attempt else []
            if isinstance(event, Established):
                self._established(event, now)
            else:
                self._failed(event, [caller for caller in callers if isinstance(caller, Hint)], now)
                for caller in callers:
                    # Superseded by a call that gave new keys: that is no failure to wait after.
                    if isinstance(caller, Link) and event.reason is not Reason.SUPERSEDED:
                        caller.retry_at = now + RETRY_REKEY
            self._calls.resume([caller for caller in callers if isinstance(caller, Hint)], now)

    def _established(self, event: Established, now: float) -> None:
        session, peer = event.session, event.peer
        self._calls.met(event.address, peer.name, now)
        link = self.links.get(peer.name)
        if link is not None and not (event.continued and event.transport_id == link.transport_id):
            self._down(link, "began a new connection" if link.peer.boot_id == peer.boot_id else "restarted", now)
            link = None
        fresh = link is None
        if link is None:
            if not self._ports.usable(event.address):
                session.close()
                return
            # One of the two pings first, always the same one; its acknowledgement is the other's sign of life, who then need not ping.
            heartbeat = self._timers.heartbeat * (1.0 if self.name < peer.name else HEARTBEAT_SECOND)
            smaller = self.name < peer.name
            link = Link(peer, event.transport_id, self._transport, self._rekey, heartbeat, smaller, now)
            link.transport.route = self._routes(peer.name)
            self.links[peer.name] = link
            self._paths.first(link, event.address, event.mtu, now)
        link.peer = peer
        self._ended(link.install(session, now))
        self._sessions[session.local_index] = link
        if fresh:
            self._calls.link_up(now)
            self._upcalls.link_up(link, event.restarted)
        self._paths.met(link, event.address, now)
        # The first packet under the new keys confirms them to a peer that waits for that.
        self._ping(link, now)

    def _failed(self, event: Failed, hints: list[Hint], now: float) -> None:
        for hint in hints:
            self._calls.failed(hint, event, now)
            if hint.name and hint.name not in self.links:
                self._upcalls.unreachable(hint.name, event.sentence)
        if event.reason in UNANSWERED:
            return
        about = hints[0] if hints else self._calls.get(event.address)
        if about is not None:
            if about.told is event.reason:
                if event.told:
                    self._upcalls.refused(event.again())
                return
            about.told = event.reason
        self._upcalls.refused(event)

    # Frames out

    def send(self, link: Link, stream: int, parts: Sequence[Buffer], priority: int, now: float, route: int = 0) -> None:
        """Queue a message; it goes out with the next `transmit`. On a link that is down it is dropped: its owner was told. *route*: see
        `qnetpy.link.transport.routes`."""
        if link.alive and not link.transport.closed:
            link.transport.send(stream, parts, priority, now, route)
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

    def transmit(self, now: float, brief: bool = False) -> Iterable[tuple[str, list[bytes]]]:
        """Batches of whole frames, by interface: one per path at most, see `pending`. Frames are the caller's, who takes all of them.

        *brief*: only some frames of each, because another call for the rest is about to come: what goes first goes now.
        """
        handshakes = self._handshake.transmit()
        dirty, self._dirty = self._dirty, []
        self._touched += dirty
        if len(dirty) == 1 and not handshakes and not self._last_words:
            return self._batches(dirty[0], now, brief)
        return self._several(dirty, handshakes, now, brief)

    def _several(
        self, dirty: list[Link], handshakes: list[tuple[Address, bytes]], now: float, brief: bool
    ) -> Iterator[tuple[str, list[bytes]]]:
        """Of all links, and what belongs to none. The bursts of one link are in memory at a time."""
        last_words, self._last_words = self._last_words, []
        for interface, frame in last_words:
            yield interface, [frame]
        for (interface, station), frame in handshakes:
            if interface in self._ports:
                yield interface, [self._ports.prefix((interface, station)) + frame]
        for link in dirty:
            yield from self._batches(link, now, brief)

    def _batches(self, link: Link, now: float, brief: bool) -> list[tuple[str, list[bytes]]]:
        link.dirty = False
        batches: list[tuple[str, list[bytes]]] = []
        if not link.alive:
            return batches
        paths = link.paths
        for path in list(paths.values()) if len(paths) < 2 else [paths[number] for number in link.transport.order()]:
            if not self._ports.usable(path.address):
                continue
            burst = BURST_BRIEF if brief else max(BURST_LEAST, min(BURST, BURST_BYTES // path.state.payload))
            frames = self._burst(link, path, now, burst)
            if frames:
                batches.append((path.address[0], frames))
                if len(frames) == burst:
                    self._mark(link)
        return batches

    def _burst(self, link: Link, path: LinkPath, now: float, limit: int) -> list[bytes]:
        session = link.sessions.current
        if session is None:
            return []
        left = session.left
        if left < limit:
            limit = left
        if limit <= 0:
            return []
        number, packets = link.transport.transmit(path.number, now, limit)
        if not packets:
            return []
        path.last_sent = now
        return session.seal(path.prefix, path.number, number, packets)

    # Time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called; perhaps too early."""
        due = self._due
        for links in (self._touched, self._dirty):
            for link in links:
                if link.alive:
                    due.set(link, link.deadline(self._timers.down_after if link.suspect else self._suspect_after))
        self._touched.clear()
        if self._handshake_touched:
            self._handshake_touched = False
            self._handshake_at = self._handshake.next_timeout()
        first = due.bound()
        when = self._handshake_at
        if when is not None and (first is None or when < first):
            first = when
        when = self._calls.next_timeout()
        if when is not None and (first is None or when < first):
            first = when
        return first

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Calling it early is harmless."""
        if self._closed:
            return
        self.next_timeout()
        if self._handshake_at is not None and self._handshake_at <= now:
            self._handshake_touched = True
            self._handshake.handle_timeout(now)
        for link in self._due.due(now):
            if link.alive:
                self._touched.append(link)
                self._tend(link, now)
        when = self._calls.next_timeout()
        if when is not None and when <= now:
            self._handshake_touched = True
            self._calls.handle_timeout(now)
        self._outcomes(now)

    def _tend(self, link: Link, now: float) -> None:
        timers, transport = self._timers, link.transport
        # Compared as `_deadline` adds them up: a difference may round to the other side, and the timer would stand still.
        heard = transport.last_received
        if now >= heard + timers.down_after:
            self._last_word(link, "hears nothing from us", 1, now)
            self._down(link, "silent", now)
            return
        if now >= heard + timers.suspect_after and not link.suspect:
            self._suspect(link, "silent", now)
        for path in link.paths.values():
            if now >= path.last_sent + link.heartbeat and path.state.open:
                path.last_sent = now
                transport.ping(now, path.number)
                self._mark(link)
        if link.seek_at is not None and now >= link.seek_at:
            self._paths.seek(link, now)
            self._mark(link)
        when = transport.next_timeout()
        if when is not None and when <= now:
            transport.handle_timeout(now)
            self._events(link, now)
            self._mark(link)
        self._ended(link.sessions.expire(now))
        if now >= link.renew_at and link.alive:
            link.renew_at = now + RENEW_CHECK
            self._renew(link, now)

    def _renew(self, link: Link, now: float) -> None:
        session = link.sessions.current
        if session is not None and session.left > 0 and not link.sessions.usable(now):
            self._down(link, "keys are too old", now)
        elif link.attempt or now < link.retry_at:
            return
        elif link.sessions.rekey_due(now) or link.numbers_low():
            path = link.best
            if path is not None and self._ports.usable(path.address):
                self._handshake_touched = True
                self._calls.join(link, PeerHint(path.address, link.name), now)

    def _suspect(self, link: Link, reason: str, now: float) -> None:
        if not link.suspect:
            link.suspect = True
            self._touched.append(link)
            self._upcalls.link_suspect(link, reason)

    # Ends

    def _down(self, link: Link, reason: str, now: float) -> None:
        if not link.alive:
            return
        link.alive = False
        if self.links.get(link.name) is link:
            del self.links[link.name]
        self.index.forget(link)
        self._due.discard(link)
        self._handshake_touched = True
        self._calls.leave(link)
        self._ended(link.sessions.close())
        self._upcalls.link_down(link, reason)
        self._calls.lost(link.name, now)

    def _ended(self, sessions: list[Session]) -> None:
        """Keys that are not used any more: what they refused is not forgotten."""
        for session in sessions:
            self._sessions.pop(session.local_index, None)
            self.counters.update(session.refused())

    def _last_word(self, link: Link, reason: str, copies: int, now: float) -> None:
        """A CLOSE, sealed while there are keys."""
        session = link.sessions.current
        for path, number, packet in link.transport.close(reason, now):
            where = link.paths[path]
            if session is not None and session.left > 0 and self._ports.usable(where.address):
                frames = session.seal(where.prefix, path, number, [packet])
                self._last_words += [(where.address[0], frame) for frame in frames * copies]

    def drop(self, link: Link, reason: str, now: float) -> None:
        """End one link: tell the node, wipe the keys."""
        if link.alive:
            self._last_word(link, reason, CLOSE_COPIES, now)
            self._down(link, reason, now)

    def close(self, now: float) -> None:
        """Say goodbye to every node and end. One more `transmit` sends the last words."""
        if self._closed:
            return
        self._calls.clear()
        for link in list(self.links.values()):
            self.drop(link, "left", now)
        self._calls.clear()
        self._dirty.clear()
        self._touched.clear()
        self._closed = True
        self._sessions.clear()


__all__ = ["Link", "LinkMachine", "LinkTimers", "Upcalls"]
