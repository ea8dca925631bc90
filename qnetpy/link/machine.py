"""All links of a node: frames in, frames out, and the life of each link from a hint to its end. Pure; docs/protocol/node.md is the page.

    hints (discovery) ---> calls (handshakes) ---> links (sessions + transport) ---> upcalls

The machine is driven by frames (`receive`), by the user (`send`, `hint`), by interfaces (`interface`, `interface_gone`) and by time
(`handle_timeout`). After any of them the caller sends what `transmit` yields and arms one timer for `next_timeout`. Upcalls run inside
these calls; they may call `send` and `hint`, not the others. What a call costs depends on what it touches, not on how many links there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from qnetpy.identity.authority import NodeIdentity
from qnetpy.link.calls import UNANSWERED, Calls, Hint
from qnetpy.link.deadlines import Deadlines
from qnetpy.link.handshake import HandshakeMachine
from qnetpy.link.link import PATHS_PER_KEY, Link
from qnetpy.link.outcome import Established, Failed, PeerHint
from qnetpy.link.ports import Port, Ports
from qnetpy.link.session import RekeyPolicy
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.events import Closed, MessageReceived, PathFound, PathLost
from qnetpy.link.upcalls import LinkTimers, Upcalls
from qnetpy.link.wire import DATA, DATA_HEADER, Address, Arrivals, sort_frames
from resmgr.dispatch import Buffer
from stack.frame import Frame

BURST = 128
"""Packets sealed and handed to the driver in one call: enough to spread the cost of the call, few enough that the peer can begin."""
BURSTS_PER_TURN = 4
"""Per link, before others get their turn and acknowledgements are looked at."""
CLOSE_COPIES = 3
HEARTBEAT_SECOND = 1.25
"""The node with the greater name waits so much longer before it pings."""
RETRY_REKEY = 5.0
"""Seconds until new keys are asked for again after a handshake for them failed."""
RENEW_CHECK = 1.0
"""Seconds between looks at whether a link's keys are due for renewal."""
MOVE_SILENCE = 0.1
MOVE_PAUSE = 0.3
"""A link whose probes are not answered moves if it heard nothing for the first and has not moved for the second, in seconds. Less would
take a peer that is busy for a moment for a broken path."""
MOVE_AGAIN = 0.5
"""Seconds for which a suspect link tries one address before the next."""


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
        self._ports = Ports(ethertype)
        self._handshake = make_handshake(self)
        self._handshake_at: float | None = None
        self._handshake_touched = True
        self._calls = Calls(self._handshake, self._ports.usable, self._linked, self.counters)
        self._upcalls = upcalls
        self._timers = LinkTimers() if timers is None else timers
        self._transport = TransportConfig() if transport is None else transport
        self._rekey = RekeyPolicy() if rekey is None else rekey
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

    def set_identity(self, identity: NodeIdentity) -> None:
        """Show and trust that from the next handshake on; the name, key and secret are the same."""
        self._handshake.set_identity(identity)

    def begin_anew(self, boot_id: bytes, reason: str, now: float) -> None:
        """Forget every session without a word under its keys, which a copy of this process may have as well, and be another boot."""
        self._handshake.set_boot_id(boot_id)
        for link in list(self.links.values()):
            self._down(link, reason, now)

    def rekey(self, now: float) -> None:
        """Ask every link's other end for new keys now; the old ones are in use until then."""
        for link in self.links.values():
            if not link.attempt and self._ports.usable(link.address):
                self._handshake_touched = True
                self._calls.join(link, PeerHint(link.address, link.name), now)

    def sizes(self) -> dict[str, int]:
        """How much of everything there is at the moment."""
        sizes = {
            "links": len(self.links),
            "sessions": len(self._sessions),
            "hints": len(self._calls),
            "calls": self._handshake.calling,
            "half_open": self._handshake.half_open,
            "timers": len(self._due),
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

    def taken(self, name: str, key: bytes, now: float) -> bool:
        """Whether *name* belongs to a live link with another key."""
        link = self.links.get(name)
        return link is not None and link.peer.static_key != key and now - link.transport.last_received < self._timers.down_after

    def mtu(self, interface: str) -> int:
        """What an interface of ours takes."""
        return self._ports.mtu(interface)

    # Interfaces

    def interface(self, name: str, mac: bytes, mtu: int, up: bool, now: float) -> None:
        """An interface is there, or changed."""
        before = self._ports.get(name)
        self._ports[name] = Port(mac, mtu, up)
        changed = before is not None and (before.mac, before.mtu) != (mac, mtu)
        rose = up and (before is None or not before.up)
        for link in list(self.links.values()):
            if link.address[0] != name:
                if rose and (link.suspect or not self._ports.usable(link.address)):
                    self._move_away(link, now)
                continue
            if not up and (before is None or before.up):
                self._carrier_lost(link, now)
            elif changed and link.may_move():
                # The peer learns of our new address, and the transport of the new size, by a new path.
                self._move(link, link.address, now)
            elif rose:
                self._ping(link, now)
        if rose:
            self._handshake_touched = True
            self._calls.interface_up(name, now)
            self._outcomes(now)

    def interface_gone(self, name: str, now: float) -> None:
        if self._ports.pop(name, None) is None:
            return
        self._handshake_touched = True
        self._calls.interface_gone(name)
        for link in list(self.links.values()):
            if link.address[0] == name:
                self._carrier_lost(link, now)

    def _carrier_lost(self, link: Link, now: float) -> None:
        interface = link.address[0]
        if not self._move_away(link, now):
            self._suspect(link, f"carrier of {interface} lost", now)

    # Hints

    def hint(self, address: Address, now: float) -> None:
        """A node may be at *address*."""
        if self._closed:
            return
        port = self._ports.get(address[0])
        if port is None or address[1] == port.mac or address[1][0] & 1:
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

    def _linked(self, hint: Hint) -> bool:
        return hint.name in self.links if hint.name else any(link.address == hint.address for link in self.links.values())

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
            packets = link.open(arrivals.index, arrivals)
            if not packets:
                continue
            if arrivals.path == link.path or self._follow(link, interface, views, offset, arrivals, packets, now):
                self._data(link, packets, now)
        if batch.handshakes:
            self._handshake_touched = True
            for place, frame in batch.handshakes:
                source = bytes(views[place][6:12])
                if source[0] & 1:
                    # It would be answered to everybody.
                    self.counters["group_source"] += 1
                else:
                    self._handshake.receive(frame, (interface, source), now)
        if self._handshake_touched:
            self._outcomes(now)
        if batch.malformed:
            self.counters["malformed"] += batch.malformed

    def _data(self, link: Link, packets: list[tuple[int, bytes]], now: float) -> None:
        """Authentic new packets of the link's path."""
        if link.suspect:
            link.suspect = False
            self._upcalls.link_back(link)
        link.transport.receive(link.path, packets, now)
        self._events(link, now)
        self._mark(link)

    def _events(self, link: Link, now: float) -> None:
        message = self._upcalls.message
        for event in link.transport.events():
            if type(event) is MessageReceived:
                message(link, event.stream, event.priority, event.data)
            elif type(event) is PathLost:
                link.lost = True
            elif type(event) is PathFound:
                link.lost = False
            elif type(event) is Closed:
                if event.by_peer:
                    self._down(link, event.reason, now)
                else:
                    self.counters["protocol_errors"] += 1
                    self._last_word(link, "", 1, now)
                    self._down(link, f"broke the protocol: {event.reason}", now)
                return

    def _follow(
        self,
        link: Link,
        interface: str,
        views: list[memoryview],
        offset: int,
        arrivals: Arrivals,
        packets: list[tuple[int, bytes]],
        now: float,
    ) -> bool:
        """Packets on another path than the link's: whether they can be taken now, since the link moved to that path."""
        source = interface, _source(views, offset, arrivals, packets[0][0])
        if not self._ports.usable(source) or source[1][0] & 1:
            self.counters["no_such_path"] += len(packets)
            return False
        if link.newer(arrivals.path):
            if not link.may_move(arrivals.path):
                self.counters["paths_used_up"] += len(packets)
                return False
            self._move(link, source, now, arrivals.path)
            return True
        self.counters["old_path"] += len(packets)
        return False

    # Handshake results

    def _outcomes(self, now: float) -> None:
        for event in self._handshake.events():
            callers = self._calls.ended(event.attempt) if event.attempt else []
            if isinstance(event, Established):
                self._established(event, now)
            else:
                self._failed(event, [caller for caller in callers if isinstance(caller, Hint)], now)
                for caller in callers:
                    if isinstance(caller, Link):
                        caller.retry_at = now + RETRY_REKEY
            self._calls.resume([caller for caller in callers if isinstance(caller, Hint)], now)

    def _established(self, event: Established, now: float) -> None:
        session, peer = event.session, event.peer
        self._calls.learned(event.address, peer.name, now)
        link = self.links.get(peer.name)
        if link is not None and not (event.continued and event.transport_id == link.transport_id):
            self._down(link, "began a new connection" if link.peer.boot_id == peer.boot_id else "restarted", now)
            link = None
        fresh = link is None
        if link is None:
            if not self._ports.usable(event.address):
                session.close()
                return
            mtu = min(event.mtu, self._ports.mtu(event.address[0]))
            # One of the two pings first, always the same one; its acknowledgement is the other's sign of life, who then need not ping.
            heartbeat = self._timers.heartbeat * (1.0 if self.name < peer.name else HEARTBEAT_SECOND)
            prefix = self._ports.prefix(event.address)
            link = Link(peer, event.transport_id, event.address, prefix, mtu, self._transport, self._rekey, heartbeat, now)
            self.links[peer.name] = link
        link.peer = peer
        for ended in link.install(session, now):
            self._sessions.pop(ended.local_index, None)
        self._sessions[session.local_index] = link
        if fresh:
            self._upcalls.link_up(link, event.restarted)
        elif event.address != link.address and self._ports.usable(event.address) and (link.suspect or not self._ports.usable(link.address)):
            self._move(link, event.address, now)
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
                return
            about.told = event.reason
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
        if self._last_words:
            last_words, self._last_words = self._last_words, []
            for interface, frame in last_words:
                yield interface, [frame]
        for (interface, station), frame in self._handshake.transmit():
            if interface in self._ports:
                yield interface, [self._ports.prefix((interface, station)) + frame]
        dirty, self._dirty = self._dirty, []
        self._touched += dirty
        for link in dirty:
            link.dirty = False
            if not link.alive or not self._ports.usable(link.address):
                continue
            for _ in range(BURSTS_PER_TURN):
                frames = self._burst(link, now)
                if frames:
                    yield link.address[0], frames
                if len(frames) < BURST:
                    break
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
        due = self._due
        for links in (self._touched, self._dirty):
            for link in links:
                if link.alive:
                    due.set(link, self._deadline(link))
        self._touched.clear()
        if self._handshake_touched:
            self._handshake_touched = False
            self._handshake_at = self._handshake.next_timeout()
        first = due.first()
        for when in (self._handshake_at, self._calls.next_timeout()):
            if when is not None and (first is None or when < first):
                first = when
        return first

    def _deadline(self, link: Link) -> float:
        timers, transport = self._timers, link.transport
        first = link.last_sent + link.heartbeat
        heard = transport.last_received
        when = heard + (timers.down_after if link.suspect else timers.suspect_after)
        if when < first:
            first = when
        if link.renew_at < first:
            first = link.renew_at
        if link.suspect and link.move_at < first:
            first = link.move_at
        for other in (transport.next_timeout(), link.sessions.next_timeout()):
            if other is not None and other < first:
                first = other
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
        if link.suspect and now >= link.move_at:
            link.move_at = now + MOVE_AGAIN
            self._move_away(link, now)
        if now >= link.last_sent + link.heartbeat:
            link.last_sent = now
            self._ping(link, now)
        when = transport.next_timeout()
        if when is not None and when <= now:
            transport.handle_timeout(now)
            self._events(link, now)
            self._mark(link)
            if link.lost and now >= heard + MOVE_SILENCE and now >= link.moved_at + MOVE_PAUSE:
                self._move_away(link, now)
        for ended in link.sessions.expire(now):
            self._sessions.pop(ended.local_index, None)
        if now >= link.renew_at and link.alive:
            link.renew_at = now + RENEW_CHECK
            self._renew(link, now)

    def _renew(self, link: Link, now: float) -> None:
        session = link.sessions.current
        if session is not None and session.left > 0 and not link.sessions.usable(now):
            self._down(link, "keys are too old", now)
        elif link.attempt or now < link.retry_at or not self._ports.usable(link.address):
            return
        elif link.sessions.rekey_due(now) or link.advance > PATHS_PER_KEY // 2:
            self._handshake_touched = True
            self._calls.join(link, PeerHint(link.address, link.name), now)

    # Paths

    def _suspect(self, link: Link, reason: str, now: float) -> None:
        if not link.suspect:
            link.suspect = True
            link.move_at = now
            self._touched.append(link)
            self._upcalls.link_suspect(link, reason)

    def _move(self, link: Link, address: Address, now: float, path: int | None = None) -> None:
        link.move(address, self._ports.prefix(address), self._ports.mtu(address[0]), now, path)
        self._ping(link, now)

    def _move_away(self, link: Link, now: float) -> bool:
        """Go on at another address of the node, the one left longest ago; False if there is none."""
        others = [address for address in self._calls.addresses(link.name) if address != link.address and self._ports.usable(address)]
        if not others or not link.may_move():
            return False
        self._move(link, min(others, key=lambda address: link.tried.get(address, 0.0)), now)
        return True

    # Ends

    def _down(self, link: Link, reason: str, now: float) -> None:
        if not link.alive:
            return
        link.alive = False
        if self.links.get(link.name) is link:
            del self.links[link.name]
        self._due.discard(link)
        self._handshake_touched = True
        self._calls.leave(link)
        for ended in link.sessions.close():
            self._sessions.pop(ended.local_index, None)
        self._upcalls.link_down(link, reason)
        self._calls.lost(link.name, now)

    def _last_word(self, link: Link, reason: str, copies: int, now: float) -> None:
        """A CLOSE, sealed while there are keys."""
        session = link.sessions.current
        for path, number, packet in link.transport.close(reason, now):
            if session is not None and session.left > 0:
                frames = session.seal(link.prefix, path, number, [packet])
                self._last_words += [(link.address[0], frame) for frame in frames * copies]

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


def _source(views: list[memoryview], offset: int, arrivals: Arrivals, number: int) -> bytes:
    """From where the packet of that number came: one of the batch."""
    wanted = (DATA, arrivals.path, arrivals.index, number)
    for view in views:
        if len(view) >= offset + DATA_HEADER.size:
            kind, path, _, index, found = DATA_HEADER.unpack_from(view, offset)
            if (kind, path, index, found) == wanted:
                return bytes(view[6:12])
    raise AssertionError("the packet is of this batch")


__all__ = ["Link", "LinkMachine", "LinkTimers", "Upcalls"]
