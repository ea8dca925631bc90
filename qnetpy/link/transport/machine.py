"""The transport: whole messages, exactly once, over lossy authenticated packets on one or several paths. Pure; docs/protocol/transport.md.

Drivers of the machine are three: the user (`send`), packets (`receive`) and time (`handle_timeout`). After any of them the caller asks
`transmit` for every path until it returns nothing, drains `events`, and arms one timer for `next_timeout`.

    outgoing.Outbox   messages to send, their order, the peer's credit
    path.Path         packet numbers, ACKs, RTT, loss, window, packet size: one per path
    incoming.Inbox    reassembly, stream order, exactly once, our credit

This file only moves bytes between them: it fills packets from the outbox and takes packets apart. Both have a fast way for bulk: `cut`
makes
a burst of packets in one list comprehension, and `receive` copies fragments that continue the current message without leaving its loop.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs

from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import (
    ACK_THRESHOLD,
    BASE_PAYLOAD,
    KIND_ACK,
    KIND_CLOSE,
    KIND_CREDIT,
    KIND_DATA,
    KIND_PADDING,
    KIND_PING,
    KIND_START,
    MAX_ACK_DELAY,
    MAX_MESSAGE,
    MAX_PATHS,
    MAX_RECEIVED_RANGES,
    MIN_FRAGMENT,
    PRIORITY_MAX,
    URGENT,
)
from qnetpy.link.transport.events import CloseCode, Closed, Event
from qnetpy.link.transport.incoming import Inbox, InMessage, PeerError
from qnetpy.link.transport.items import CREDIT, DATA_HEAD, PING_BYTE, START_HEAD, Close, read_ack, read_close
from qnetpy.link.transport.outgoing import Outbox, OutMessage
from qnetpy.link.transport.path import Path, Run
from qnetpy.link.transport.policy import policy
from qnetpy.link.transport.statistics import PathStatistics, TransportStatistics
from resmgr.dispatch import Buffer
from resmgr.errors import BadMessage, Misuse

DATA_SIZE = DATA_HEAD.size
START_SIZE = START_HEAD.size
_unpack_data = DATA_HEAD.unpack_from
_unpack_start = START_HEAD.unpack_from
_pack_data = DATA_HEAD.pack
_pack_start = START_HEAD.pack


def _start_of(message: OutMessage, length: int) -> bytes:
    """The START head of *message*, of which the first *length* bytes follow."""
    before = message.predecessor
    behind = message.id - before.id if before is not None else 0
    return _pack_start(KIND_START, message.priority, length, message.id, 0, message.total, message.stream, behind)


@attrs.define
class Counters:
    """What the machine dropped or refused, by reason."""

    no_such_path: int = 0
    after_close: int = 0
    protocol_errors: int = 0


class Transport:
    """One end of the connection between two nodes. All times are monotonic seconds; nothing blocks."""

    def __init__(self, config: TransportConfig, now: float) -> None:
        self.config = config
        self.last_received = now
        """When the peer was last heard on any path (authenticated, so it lives)."""
        self.counters = Counters()
        self._policy = policy(config.policy)
        self._events: list[Event] = []
        self._outbox = Outbox()
        self._inbox = Inbox(config.receive_window, self._events)
        self._paths: dict[int, Path] = {}
        self._credit_due = True
        self._tickets = 0
        self._closed: Close | None = None
        self._closing: set[int] = set()
        """Paths on which the CLOSE has still to go out."""

    # User

    def send(self, stream: int, parts: Sequence[Buffer], priority: int, now: float) -> int:
        """Queue one message of *stream* (0 to 2**64 - 1): its parts joined. Returns a number that is unique in this direction.

        The parts are borrowed until every byte is acknowledged: do not change them while `backlog` counts them. Messages up to
        SMALL_MESSAGE
        in several parts are copied. Raises Misuse when it is longer than MAX_MESSAGE, the priority is not 0 to 63, or the transport is
        closed.
        """
        if self._closed is not None:
            raise Misuse("send on a closed transport")
        if not 0 <= priority <= PRIORITY_MAX:
            raise Misuse(f"priority {priority} is not 0 to {PRIORITY_MAX}")
        message = OutMessage(stream, priority, parts)
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

    def ping(self, now: float) -> None:
        """Ask every path for a sign of life: goes out in the next `transmit`, before data and whatever the window says."""
        for path in self._paths.values():
            path.ping_due = True

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

    def add_path(self, path: int, max_payload: int, now: float, rtt: float | None = None) -> None:
        """A path that may be used from now on. *max_payload* is the largest plaintext that fits its interface's MTU; *rtt* is the
        handshake's
        round trip time if known. Raises Misuse when it is there already, cannot carry BASE_PAYLOAD, or is one too many."""
        if path in self._paths:
            raise Misuse(f"path {path} exists")
        if max_payload < BASE_PAYLOAD:
            raise Misuse(f"path {path} carries {max_payload} bytes; {BASE_PAYLOAD} is the least")
        if len(self._paths) >= MAX_PATHS:
            raise Misuse(f"more than {MAX_PATHS} paths")
        self._paths[path] = Path(path, max_payload, self.config, self._outbox, self._events, now, rtt)

    def remove_path(self, path: int, now: float) -> None:
        """Forget a path (carrier lost, address gone): what was in flight on it goes over the others. Its packet numbers must not come again
        under the same key. Unknown paths are ignored."""
        gone = self._paths.pop(path, None)
        self._closing.discard(path)
        if gone is not None:
            gone.abandon(keep_probing=False)
            if gone.credit_lost:
                self._credit_due = True

    def paths(self) -> list[int]:
        return list(self._paths)

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
        inbox = self._inbox
        if path.credit_lost or inbox.wants_grant():
            path.credit_lost = False
            self._credit_due = True

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
                if at > size:
                    raise BadMessage("fragment beyond its packet")
                if offset:
                    raise BadMessage("START not at 0")
                message = inbox.start(ident, priority, total, stream, behind, packet[at - length : at])
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
        data = self._outbox.mask != 0 and self._policy(where, self._paths)
        if not data and not where.ack_now and not where.ping_due and not self._credit_due:
            where.limited = False
            packets = []
        else:
            packets = self._fill(where, now, limit, data)
        if len(packets) < limit and where.mtu.due() and where.rtt.sampled and not where.suspect:
            packets += self._probe(where, now, limit - len(packets))
        where.packets_sent += len(packets)
        return first, packets

    def _probe(self, path: Path, now: float, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while path.mtu.due() and len(packets) < limit:
            size = path.mtu.probe()
            run = Run(path.next_pn, path.next_pn, 0, now)
            run.probe = size
            path.record(run, now)
            path.next_pn += 1
            packets.append(PING_BYTE + bytes(size - 1))
        return packets

    def _fill(self, path: Path, now: float, limit: int, data: bool) -> list[bytes]:
        """Packets with what is due: control items first, then messages as far as the window goes."""
        out: list[bytes] = []
        outbox = self._outbox
        payload = path.payload
        room = path.congestion.window - path.in_flight
        pieces: list[Buffer] = []
        used = 0
        credit = False
        wants = False
        items: list[tuple[OutMessage, int, int]] | None = None
        if path.pending and ((data and (room >= payload or path.probes)) or path.ack_now or path.ping_due or self._credit_due):
            ack = path.ack_item(now)
            pieces.append(ack)
            used = len(ack)
        elif path.ack_now:
            path.ack_now = False
        if path.ping_due:
            path.ping_due = False
            pieces.append(PING_BYTE)
            used += 1
            wants = True
        if self._credit_due:
            self._credit_due = False
            pieces.append(CREDIT.pack(KIND_CREDIT, self._inbox.grant()))
            used += CREDIT.size
            credit = wants = True
        if wants and path.probes:
            # After a probe timeout the small probe stays small: it passes where a large packet may not.
            self._emit(path, out, pieces, used, items, credit, wants, now)
            pieces, used, credit, wants = [], 0, False, False
        path.limited = False
        if data and room >= payload and (lone := outbox.take_lone(payload - used - START_SIZE)) is not None:
            total = lone.total
            pieces.append(_start_of(lone, total))
            pieces.append(lone.view)
            used += START_SIZE + total
            items = [(lone, 0, total)]
            data = outbox.mask != 0
        step = payload - DATA_SIZE
        while data:
            if len(out) >= limit:
                break
            if room < payload and not path.probes:
                path.limited = True
                break
            message = outbox.pick()
            if message is None:
                break
            span = message.span()
            if span is None:
                raise AssertionError("picked a message with nothing to send")
            start, end = span
            left = end - start
            if start and not used and left >= step:
                count = min(left // step, limit - len(out), max(1, room // payload), outbox.turn_room() // step + 1)
                out += self._cut(path, message, start, count, step, now)
                room -= count * payload
                path.probes = 0
                continue
            head = DATA_SIZE if start else START_SIZE
            space = payload - used - head
            if left > space and space < MIN_FRAGMENT:
                room -= self._emit(path, out, pieces, used, items, credit, wants, now)
                path.probes = 0
                pieces, used, credit, wants, items = [], 0, False, False, None
                continue
            length = left if left <= space else space
            end = start + length
            if start:
                pieces.append(_pack_data(KIND_DATA, message.priority, length, message.id, start, message.total))
            else:
                pieces.append(_start_of(message, length))
            pieces.append(message.piece(start, end))
            used += head + length
            items = [*(items or ()), (message, start, end)]
            message.took(start, end)
            outbox.served(message, length)
            if used + START_SIZE >= payload:
                room -= self._emit(path, out, pieces, used, items, credit, wants, now)
                path.probes = 0
                pieces, used, credit, wants, items = [], 0, False, False, None
        if pieces:
            self._emit(path, out, pieces, used, items, credit, wants, now)
            if items is not None:
                path.probes = 0
        if path.limited and out:
            last = out[-1]
            out[-1] = bytes((last[0] | URGENT,)) + last[1:]
        return out

    def _cut(self, path: Path, message: OutMessage, start: int, count: int, step: int, now: float) -> list[bytes]:
        """*count* packets that hold nothing but *step* bytes of *message* each, recorded as one run."""
        end = start + count * step
        packets = message.cut(start, count, step)
        pn = path.next_pn
        path.next_pn = pn + count
        run = Run(pn, pn + count - 1, path.payload, now)
        run.message = message
        run.offset = start
        run.stop = end
        run.step = step
        path.record(run, now)
        message.took(start, end)
        self._outbox.served(message, end - start)
        return packets

    def _emit(
        self,
        path: Path,
        out: list[bytes],
        pieces: list[Buffer],
        used: int,
        items: list[tuple[OutMessage, int, int]] | None,
        credit: bool,
        wants: bool,
        now: float,
    ) -> int:
        """Finish a packet of several items; returns the bytes it takes from the window."""
        pn = path.next_pn
        path.next_pn = pn + 1
        out.append(b"".join(pieces))
        if items is None and not wants:
            return 0
        run = Run(pn, pn, used, now)
        run.items = items
        run.credit = credit
        path.record(run, now)
        return used

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
            if path.credit_lost:
                path.credit_lost = False
                self._credit_due = True
            if path.suspect and path.pto_count > count:
                self._rescue(path)

    def _rescue(self, path: Path) -> None:
        """*path* does not answer: move its data if there is anywhere to go."""
        if any(not other.suspect for other in self._paths.values()):
            path.abandon(keep_probing=True)

    # Looking

    def statistics(self) -> TransportStatistics:
        """A copy of all counters and sizes."""
        inbox = self._inbox
        outbox = self._outbox
        return TransportStatistics(
            backlog=outbox.backlog,
            unacknowledged=outbox.messages,
            outgoing_streams=outbox.streams(),
            messages_sent=self._tickets,
            messages_received=inbox.delivered,
            resent_bytes=outbox.resent_bytes,
            credit_blocked=outbox.credit_blocked,
            incomplete=len(inbox.open),
            waiting=inbox.waiting(),
            held=inbox.held(),
            duplicate_fragments=inbox.duplicates,
            delivered_ranges=len(inbox.done),
            no_such_path=self.counters.no_such_path,
            after_close=self.counters.after_close,
            protocol_errors=self.counters.protocol_errors,
            paths={ident: PathStatistics.of(path) for ident, path in self._paths.items()},
        )
