"""The transport: whole messages, exactly once, over lossy authenticated packets on one or several paths. Pure; docs/protocol/transport.md.

Drivers of the machine are three: the user (`send`), packets (`receive`) and time (`handle_timeout`). After any of them the caller asks
`transmit` for every path until it returns nothing, drains `events`, and arms one timer for `next_timeout`.

    outgoing.Outbox   messages to send, their order, the peer's credit
    path.Path         packet numbers, ACKs, RTT, loss, window, packet size: one per path
    incoming.Inbox    reassembly, stream order, exactly once, our credit

    packing.Packer    fills packets of a path
    schedule          which path carries what, by policy

This file takes packets apart and ties the others together. There is a fast way for bulk: `receive` copies fragments that continue the
current message without leaving its loop.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import (
    ACK_THRESHOLD,
    BASE_PAYLOAD,
    KIND_ACK,
    KIND_CHALLENGE,
    KIND_CLOSE,
    KIND_CREDIT,
    KIND_DATA,
    KIND_PADDING,
    KIND_PATH,
    KIND_PING,
    KIND_RESPONSE,
    KIND_START,
    MAX_ACK_DELAY,
    MAX_MESSAGE,
    MAX_PATHS,
    MAX_RECEIVED_RANGES,
    MAX_RESPONSES,
    PRIORITY_MAX,
    ROUTED,
    URGENT,
)
from qnetpy.link.transport.events import Challenged, CloseCode, Closed, Event, PathTold, PathValid
from qnetpy.link.transport.incoming import Inbox, InMessage, PeerError
from qnetpy.link.transport.items import (
    CREDIT,
    DATA_HEAD,
    RESPONSE,
    ROUTE,
    START_HEAD,
    Close,
    PathState,
    read_ack,
    read_challenge,
    read_close,
    read_path,
    read_route,
)
from qnetpy.link.transport.lane import Lane
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.packing import Packer
from qnetpy.link.transport.path import Path
from qnetpy.link.transport.routes import route
from qnetpy.link.transport.schedule import Schedule
from qnetpy.link.transport.statistics import Counters, TransportStatistics, collect
from qnetpy.link.transport.validation import Validation
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse

DATA_SIZE: Final = DATA_HEAD.size
START_SIZE: Final = START_HEAD.size
SHARED_BURST: Final = 16
"""Packets that one lane fills before the next has its turn, when there are several."""
_unpack_data: Final = DATA_HEAD.unpack_from
_unpack_start: Final = START_HEAD.unpack_from


class Transport:
    """One end of the connection between two nodes. All times are monotonic seconds; nothing blocks."""

    def __init__(self, config: TransportConfig, now: float) -> None:
        self.config = config
        self.last_received = now
        """When the peer was last heard on any path (authenticated, so it lives)."""
        self.counters = Counters()
        self._events: list[Event] = []
        self._outbox = Outbox()
        self._inbox = Inbox(config.receive_window, self._events)
        self._packer = Packer(self._inbox)
        self._paths: dict[int, Path] = {}
        self._schedule = Schedule(self._outbox, self._paths)
        self._alone = False
        """There is one path and no policy, so nothing to choose."""
        self._news_seen = 0
        self._tickets = 0
        self._closed: Close | None = None
        self._closing: set[int] = set()
        """Paths on which the CLOSE has still to go out."""

    # User

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, now: float, route: int = 0) -> int:
        """Queue one message of *stream* (0 to 2**64 - 1): its parts joined. Returns a number that is unique in this direction.

        *route* of `qnetpy.link.transport.routes`, 0 for the connection's own. The parts are borrowed until every byte is acknowledged: do
        not change them while `backlog` counts them. Messages up to SMALL_MESSAGE in several parts are copied. Raises Misuse when it is
        longer than MAX_MESSAGE, the priority is not 0 to 63, or the transport is closed.
        """
        if self._closed is not None:
            raise Misuse("send on a closed transport")
        if not 0 <= priority <= PRIORITY_MAX:
            raise Misuse(f"priority {priority} is not 0 to {PRIORITY_MAX}")
        message = OutMessage(self._outbox.lane(route), stream, priority, parts)
        if message.total > MAX_MESSAGE:
            raise Misuse(f"message of {message.total} bytes; the limit is {MAX_MESSAGE}")
        self._outbox.push(message)
        self._tickets += 1
        return self._tickets

    def backlog(self) -> int:
        """Bytes of messages not yet wholly acknowledged."""
        return self._outbox.backlog

    def unacknowledged(self) -> int:
        """Messages not yet wholly acknowledged."""
        return self._outbox.messages

    def events(self) -> list[Event]:
        """Everything that happened since the last call; the caller owns the list."""
        events = self._events[:]
        self._events.clear()
        return events

    def ping(self, now: float, path: int | None = None) -> None:
        """Ask one path, or every one, for a sign of life: goes out in the next `transmit`, before data and whatever the window says."""
        for where in self._paths.values() if path is None else (self._paths[path],):
            if where.valid:
                where.ping_due = True

    def close(self, reason: str, now: float) -> list[tuple[int, int, bytes]]:
        """End at once: returns the final packets as (path, packet number, plaintext), one per path. Messages in `backlog` are given up.
        Idempotent."""
        if self._closed is None:
            self._end(Close(CloseCode.NORMAL, reason))
            self._closing = set(self._paths)
        final: list[tuple[int, int, bytes]] = []
        for ident in list(self._closing):
            pn, packets = self.transmit(ident, now, 1)
            final += [(ident, pn, packet) for packet in packets]
        return final

    @property
    def closed(self) -> bool:
        return self._closed is not None

    # Paths

    def add_path(
        self, path: int, max_payload: int, now: float, rtt: float | None = None, *, valid: bool = True, port: int = 0, up: bool = True
    ) -> None:
        """A path that exists from now on. *max_payload* is the largest plaintext that fits its interface's MTU; *rtt* is the handshake's
        round trip time if known; *port* the number of our interface. Unless it is *valid* (the handshake came this way), nothing but
        CHALLENGEs and acknowledgements goes out on it until the peer has answered one. Raises Misuse when it is there already, cannot
        carry BASE_PAYLOAD, or is one too many."""
        if path in self._paths:
            raise Misuse(f"path {path} exists")
        if max_payload < BASE_PAYLOAD:
            raise Misuse(f"path {path} carries {max_payload} bytes; {BASE_PAYLOAD} is the least")
        if len(self._paths) >= MAX_PATHS:
            raise Misuse(f"more than {MAX_PATHS} paths")
        where = self._paths[path] = Path(path, max_payload, self.config, self._outbox, self._events, now, rtt)
        where.port = port
        where.news_seen = self._news_seen
        where.valid, where.up = valid, up
        where.open = valid and up
        self._packer.news.pop(path, None)
        self._count_paths()

    def challenge(self, path: int, token: bytes, station: bytes, now: float) -> None:
        """Ask the peer to show that *path* leads to it. *token*: 8 random bytes; *station*: our address there, empty if unknown. Ends with
        PathValid or PathRefused."""
        where = self._paths[path]
        where.validation = Validation(token, where.port, station, now)
        where.control_due = True

    def path_up(self, path: int, up: bool, now: float) -> None:
        """Our interface of *path* works, or does not: then what was in flight goes over the others, and the peer is told not to use it."""
        where = self._paths[path]
        if where.up == up:
            return
        where.set_states(up=up)
        self._told(where)
        self._packer.say(path, PathState.UP if up else PathState.DOWN)

    def resize_path(self, path: int, max_payload: int, now: float) -> None:
        """The MTU of our interface of *path* has changed. What is in flight and was larger is sent again in smaller packets."""
        self._paths[path].resize(max_payload)

    def remove_path(self, path: int, now: float, tell: PathState | None = None) -> None:
        """Forget a path: what was in flight on it goes over the others. Its packet numbers must not come again under the same key. *tell*:
        CLOSED or GONE, for the peer. Unknown paths are ignored."""
        gone = self._paths.pop(path, None)
        self._count_paths()
        self._closing.discard(path)
        if gone is not None:
            gone.abandon(keep_probing=False)
            self._told(gone)
        if tell is not None:
            self._packer.say(path, tell)

    def _told(self, path: Path) -> None:
        """What *path* may have lost of control items is due again; what it has told is done. What others cannot deliver, it can."""
        path.attention = False
        if path.news_acked:
            self._packer.heard(path.news_acked)
            path.news_acked = 0
        if path.credit_lost:
            path.credit_lost = False
            self._packer.credit_due = True
        if path.news_lost:
            path.news_lost = False
            self._packer.news_due = bool(self._packer.news)
        if path.found:
            path.found = False
            # Not left to their timeouts, which every heartbeat on them puts off.
            for other in self._paths.values():
                if other.suspect:
                    other.abandon(keep_probing=True)

    def paths(self) -> list[int]:
        return list(self._paths)

    def path(self, path: int) -> Path:
        """The live state of *path*, to be looked at only."""
        return self._paths[path]

    def usable(self, path: int) -> bool:
        """Whether *path* may carry data and answers."""
        where = self._paths.get(path)
        return where is not None and where.open and not where.suspect

    @property
    def route(self) -> int:
        """Of messages without one of their own; 0: loadbalance."""
        return self._schedule.route

    @route.setter
    def route(self, route: int) -> None:
        self._schedule.route = route
        self._count_paths()

    def _count_paths(self) -> None:
        self._alone = len(self._paths) == 1 and not self._schedule.route
        for path in self._paths.values():
            path.hurried = len(self._paths) > 1

    def order(self) -> list[int]:
        """The paths in the order in which `transmit` should be called for them: who delivers soonest first."""
        return self._schedule.order()

    def stuck(self, route: int) -> bool:
        """Whether no path that messages of *route* may take answers now, although others do."""
        return self._schedule.stuck(route)

    # Packets in

    def receive(self, path: int, packets: list[tuple[int, bytes]], now: float) -> None:
        """Packets (number, plaintext) of *path*, authenticated and never seen before, in the order of their arrival. The plaintexts are not
        kept. Whatever is wrong with them closes the transport with a Closed event; nothing is raised."""
        where = self._paths.get(path)
        if where is None:
            self.counters.no_such_path += len(packets)
            return
        if self._closed is not None:
            self.counters.after_close += len(packets)
            return
        if not packets:
            return
        self.last_received = where.last_received = now
        where.packets_received += len(packets)
        try:
            self._receive(where, packets, now)
        except PeerError as error:
            self._fail(error.code, str(error))
        except BadMessage as bad:
            self._fail(CloseCode.PROTOCOL_ERROR, str(bad))
        except (struct.error, IndexError):
            self._fail(CloseCode.PROTOCOL_ERROR, "truncated item")

    def _receive(self, path: Path, packets: list[tuple[int, bytes]], now: float) -> None:
        if len(packets) == 1 and packets[0][0] == path.expected:
            # A message and its answer are one packet each: without the means to join fragments.
            wants, urgent, _ = self._take_apart(path, packets[0][1], now)
            if self._closed is None:
                expected = path.expected
                path.received.add(expected, expected + 1)
                path.expected = expected + 1
                path.largest_at = now
                self._owe(path, int(wants), urgent, now)
            return
        inbox = self._inbox
        received = path.received
        expected = path.expected
        first = expected
        urgent = False
        wanting = 0
        # The message being filled, and what of it was filled without telling the inbox.
        message: InMessage | None = None
        ident = start = stop = total = -1
        view = memoryview(b"")
        for pn, packet in packets:
            if pn == expected:
                expected += 1
            else:
                if first < expected:
                    received.add(first, expected)
                if pn > expected:
                    expected = first = pn + 1
                else:
                    first = expected
                received.add(pn, pn + 1)
                urgent = True
            if packet[0] == KIND_DATA:
                _, _, length, ident_, offset, total_ = _unpack_data(packet)
                if ident_ == ident and total_ == total and length + DATA_SIZE == len(packet):
                    end = offset + length
                    if end <= total and length:
                        if offset != stop:
                            if stop > start:
                                message = inbox.filled(message, start, stop)  # type: ignore[arg-type]  # ident is not -1, so there is one
                                if message is None:
                                    ident = start = stop = -1
                                    inbox.duplicates += 1
                                    wanting += 1
                                    continue
                            start = offset
                        view[offset:end] = packet[DATA_SIZE:]
                        stop = end
                        wanting += 1
                        continue
            if stop > start:
                inbox.filled(message, start, stop)  # type: ignore[arg-type]  # as above
            wants, asks, message = self._take_apart(path, packet, now)
            if self._closed is not None:
                return
            if wants:
                wanting += 1
            if asks:
                urgent = True
            if message is None:
                ident = start = stop = -1
            else:
                ident = message.id
                total = message.total
                view = message.view
                start = stop = 0
        if stop > start:
            inbox.filled(message, start, stop)  # type: ignore[arg-type]  # as above
        if first < expected:
            received.add(first, expected)
        if expected > path.expected:
            path.expected = expected
            path.largest_at = now
        if len(received.bounds) > 2 * MAX_RECEIVED_RANGES:
            received.drop_oldest(MAX_RECEIVED_RANGES)
        self._owe(path, wanting, urgent, now)

    def _owe(self, path: Path, wanting: int, urgent: bool, now: float) -> None:
        """What the packets just received ask of us: *wanting* of them an ACK, and perhaps more credit."""
        if wanting:
            path.pending += wanting
            if urgent or path.pending >= ACK_THRESHOLD:
                path.ack_now = True
            elif path.ack_at is None:
                path.ack_at = now + MAX_ACK_DELAY
        if path.attention:
            self._told(path)
        if self._inbox.wants_grant():
            self._packer.credit_due = True

    def _take_apart(self, path: Path, packet: bytes, now: float) -> tuple[bool, bool, InMessage | None]:
        """Any packet, item by item. Tells whether it wants an ACK, whether at once, and which incomplete message its last fragment
        filled."""
        size = len(packet)
        urgent = bool(packet[0] & URGENT)
        kind = packet[0] & ~URGENT
        wants = False
        message: InMessage | None = None
        inbox = self._inbox
        at = 0
        while True:
            if kind == KIND_START:
                _, priority, length, ident, offset, total, stream, behind = _unpack_start(packet, at)
                at += START_SIZE + length
                way = 0
                if priority & ROUTED:
                    priority ^= ROUTED
                    policy, port = read_route(packet, at - length)
                    way = route(policy, port, theirs=True)
                    at += ROUTE.size
                if at > size:
                    raise BadMessage("fragment beyond its packet")
                if offset:
                    raise BadMessage("START not at 0")
                message = inbox.start(ident, priority, total, stream, behind, packet[at - length : at], way)
                wants = True
            elif kind == KIND_DATA:
                _, priority, length, ident, offset, total = _unpack_data(packet, at)
                at += DATA_SIZE + length
                if at > size:
                    raise BadMessage("fragment beyond its packet")
                message = inbox.fragment(ident, priority, offset, total, packet[at - length : at])
                wants = True
            elif kind == KIND_ACK:
                delay, ranges, at = read_ack(packet, at)
                path.on_ack(delay, ranges, now)
            elif kind == KIND_PING:
                at += 1
                wants = urgent = True
            elif kind == KIND_CREDIT:
                _, credit = CREDIT.unpack_from(packet, at)
                at += CREDIT.size
                if credit > self._outbox.credit:
                    self._outbox.credit = credit
                wants = True
            elif kind == KIND_PADDING:
                break
            elif kind == KIND_CHALLENGE:
                at = self._challenged(path, packet, at)
            elif kind == KIND_RESPONSE:
                at = self._answered(path, packet, at, now)
            elif kind == KIND_PATH:
                at = self._path_told(packet, at, now)
                wants = True
            elif kind == KIND_CLOSE:
                code, reason, at = read_close(packet, at)
                known = code in CloseCode.__members__.values()
                self._end(Close(code, reason))
                self._events.append(Closed(True, CloseCode(code) if known else CloseCode.PROTOCOL_ERROR, reason))
                return False, False, None
            else:
                raise BadMessage("unknown item")
            if at >= size:
                break
            kind = packet[at]
        return wants, urgent, message

    def _challenged(self, path: Path, packet: bytes, at: int) -> int:
        challenge, at = read_challenge(packet, at)
        path.peer_port = challenge.port
        if len(path.responses) < MAX_RESPONSES:
            path.responses.append(challenge.token)
            path.control_due = True
        else:
            self.counters.challenges_dropped += 1
        self._events.append(Challenged(path.ident, challenge.station))
        return at

    def _answered(self, path: Path, packet: bytes, at: int, now: float) -> int:
        token = RESPONSE.unpack_from(packet, at)[1]
        if path.validation is not None and path.validation.token == token:
            round_trip = path.validation.round_trip(now)
            if round_trip is not None:
                path.rtt.update(round_trip, 0.0, now)
            path.validation = None
            path.set_states(valid=True)
            self._events.append(PathValid(path.ident))
        else:
            self.counters.stray_responses += 1
        return at + RESPONSE.size

    def _path_told(self, packet: bytes, at: int, now: float) -> int:
        news, at = read_path(packet, at)
        self._news_seen = max(self._news_seen, news.sequence)
        path = self._paths.get(news.path)
        if path is not None and news.sequence > path.news_seen:
            path.news_seen = news.sequence
            if news.state in (PathState.UP, PathState.DOWN):
                path.set_states(peer_up=news.state is PathState.UP)
                self._told(path)
            self._events.append(PathTold(news.path, news.state))
        return at

    def _fail(self, code: CloseCode, text: str) -> None:
        self.counters.protocol_errors += 1
        self._events.append(Closed(False, code, text))
        self._end(Close(code, text))
        self._closing = set(self._paths)

    def _end(self, how: Close) -> None:
        self._closed = how
        for path in self._paths.values():
            path.stop()

    # Packets out

    def transmit(self, path: int, now: float, limit: int) -> tuple[int, list[bytes]]:
        """Up to *limit* (at least 1) plaintexts for *path* and the packet number of the first; the others follow in order.

        Fewer than *limit* mean that there is nothing more to send now, on this path. Each number is used once: what is returned must be
        sent or counts as lost.
        """
        where = self._paths.get(path)
        if where is None:
            return 0, []
        first = where.next_pn
        if self._closed is not None:
            if path not in self._closing:
                return first, []
            self._closing.discard(path)
            where.next_pn += 1
            return first, [self._closed.pack()]
        packer, outbox = self._packer, self._outbox
        packets = packer.control(where, now) if where.control_due else []
        if self._alone and not outbox.routed:
            others: list[Path] = []
            lane = outbox.plain if outbox.plain.mask and where.open else None
        else:
            lane, others = self._schedule.lane(where)
        tells = (packer.credit_due or packer.news_due) and (where.open or self._last_way(where))
        if lane is not None or where.ack_now or where.ping_due or tells:
            if not outbox.routed:
                packets += packer.fill(where, now, limit, lane, others, tells)
            else:
                packets += self._fill_in_turn(where, now, limit, lane, others, tells)
        else:
            where.limited = False
        if where.copies and len(packets) < limit:
            packets += packer.copies(where, now, limit - len(packets))
        if len(packets) < limit and where.mtu.due() and where.rtt.sampled and where.open and not where.suspect:
            packets += packer.probe(where, now, limit - len(packets))
        where.packets_sent += len(packets)
        return first, packets

    def _last_way(self, path: Path) -> bool:
        """No path is open, perhaps because each end waits for the other's news of that: then they go over what our interfaces reach."""
        return path.valid and path.up and not any(other.open for other in self._paths.values())

    def _fill_in_turn(self, path: Path, now: float, limit: int, lane: Lane | None, others: list[Path], tells: bool) -> list[bytes]:
        """`Packer.fill` for several lanes, a part of the burst each."""
        packets = self._packer.fill(path, now, min(limit, SHARED_BURST), lane, others, tells)
        while lane is not None and len(packets) < limit and not path.limited:
            lane, others = self._schedule.lane(path)
            if lane is not None:
                more = self._packer.fill(path, now, min(limit - len(packets), SHARED_BURST), lane, others, False)
                if not more:
                    break
                packets += more
        return packets

    # Time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called; None while nothing is pending."""
        soonest: float | None = None
        for path in self._paths.values():
            when = path.next_timeout()
            if when is not None and (soonest is None or when < soonest):
                soonest = when
        return soonest

    def handle_timeout(self, now: float) -> None:
        """Run what is due. Calling it early is harmless."""
        if self._closed is not None:
            return
        for path in self._paths.values():
            count = path.pto_count
            path.on_timeout(now)
            if path.attention:
                self._told(path)
            if path.suspect and path.pto_count > count:
                self._rescue(path)

    def _rescue(self, path: Path) -> None:
        """*path* does not answer: move its data if there is anywhere to go."""
        if any(other.open and not other.suspect for other in self._paths.values()):
            path.abandon(keep_probing=True)

    # Looking

    def statistics(self) -> TransportStatistics:
        """A copy of all counters and sizes."""
        return collect(self._inbox, self._outbox, self._tickets, self.counters, self._paths)
