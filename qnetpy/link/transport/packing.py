"""Filling packets of one path: control items, then messages. What goes on which path is decided by the caller.

ACK, PING, CREDIT and PATH go first and whatever the window says; CHALLENGE and RESPONSE have padded packets of their own, which are
neither acknowledged nor counted. Bulk has a fast way: `cut` makes a burst of packets in one list comprehension.
"""

from __future__ import annotations

from typing import Final

from qnetpy.link.transport.constants import COPIES_MAX, KIND_CREDIT, KIND_DATA, KIND_START, MIN_FRAGMENT, ROUTED, URGENT
from qnetpy.link.transport.incoming import Inbox
from qnetpy.link.transport.items import CREDIT, DATA_HEAD, PATH, PING_BYTE, ROUTE, START_HEAD, PathNews, PathState
from qnetpy.link.transport.lane import Lane
from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.path import Path, Run
from qnetpy.link.transport.routes import THEIRS, policy_of, port_of
from qnetpy.link.transport.validation import padded, response
from resmgr.dispatch import Buffer

DATA_SIZE: Final = DATA_HEAD.size
START_SIZE: Final = START_HEAD.size
_pack_data: Final = DATA_HEAD.pack
_pack_start: Final = START_HEAD.pack

NEWS_MAX: Final = 64
"""PATH items in one packet."""

Items = list[tuple[OutMessage, int, int]]


def start_of(message: OutMessage, length: int) -> bytes:
    """The START head of *message*, of which the first *length* bytes follow."""
    before = message.predecessor
    behind = message.id - before.id if before is not None else 0
    route = message.lane.route
    if not route or route & THEIRS:
        return _pack_start(KIND_START, message.priority, length, message.id, 0, message.total, message.stream, behind)
    head = _pack_start(KIND_START, message.priority | ROUTED, length, message.id, 0, message.total, message.stream, behind)
    return head + ROUTE.pack(policy_of(route), port_of(route))


def pieces_of(run: Run) -> Items:
    """The fragments in *run*."""
    if run.message is not None:
        return [(run.message, run.offset, run.stop)]
    return run.items or []


class Packer:
    """Makes packets for the paths of one transport; owns what of the control items is due."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.credit_due = True
        self.news: dict[int, tuple[PathState, int]] = {}
        """State and sequence of each path of which the peer has not acknowledged what we said last."""
        self.news_due = False
        self.news_sequence = 0
        """Of the newest entry."""

    def say(self, path: int, state: PathState) -> None:
        """Tell the peer our state of *path*, until it is acknowledged."""
        self.news_sequence += 1
        self.news[path] = state, self.news_sequence
        self.news_due = True

    def heard(self, sequence: int) -> None:
        """The peer has what we said up to *sequence*."""
        for path in [path for path, (_, number) in self.news.items() if number <= sequence]:
            del self.news[path]

    def control(self, path: Path, now: float) -> list[bytes]:
        """Packets of the validation of *path*: small answers to padded questions, each in a packet of its own."""
        packets: list[bytes] = []
        items = [response(token) for token in path.responses]
        path.responses.clear()
        path.control_due = False
        validation = path.validation
        if validation is not None and validation.due:
            items.append(validation.challenge(now))
        if items:
            path.next_pn += 1
            packets.append(padded(items))
        return packets

    def probe(self, path: Path, now: float, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while path.mtu.due() and len(packets) < limit:
            size = path.mtu.probe()
            run = Run(path.next_pn, path.next_pn, 0, now)
            run.probe = size
            path.record(run, now)
            path.next_pn += 1
            packets.append(PING_BYTE + bytes(size - 1))
        return packets

    def fill(self, path: Path, now: float, limit: int, lane: Lane | None, others: list[Path], tells: bool) -> list[bytes]:
        """Packets with what is due: control items first, then messages of *lane* as far as the window goes. *others*: paths over which
        the same messages are to go. *tells*: CREDIT and PATH may go on this path."""
        out: list[bytes] = []
        before = len(path.runs)
        room = path.congestion.window - path.in_flight
        payload = path.payload
        ready = lane is not None and (room >= payload or path.probes > 0)
        pieces: list[Buffer] = []
        used = 0
        credit = False
        wants = False
        news = 0
        if path.pending and (ready or path.ack_now or path.ping_due or tells):
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
        if self.credit_due and tells:
            self.credit_due = False
            pieces.append(CREDIT.pack(KIND_CREDIT, self._inbox.grant()))
            used += CREDIT.size
            credit = wants = True
        if self.news_due and tells:
            self.news_due = False
            news = self.news_sequence
            told = [PathNews(ident, state, sequence).pack() for ident, (state, sequence) in list(self.news.items())[-NEWS_MAX:]]
            pieces += told
            used += len(told) * PATH.size
            wants = True
        if wants and path.probes:
            # After a probe timeout the small probe stays small: it passes where a large packet may not.
            self._emit(path, out, pieces, used, None, credit, news, wants, now)
            pieces, used, credit, news, wants = [], 0, False, 0, False
        path.limited = False
        items: Items | None = None
        if lane is not None and room >= payload and (lone := lane.take_lone(payload - used - START_SIZE - ROUTE.size)) is not None:
            # The usual packet of a message or an answer: nothing else waits.
            head = start_of(lone, lone.total)
            pieces.append(head)
            pieces.append(lone.view)
            used += len(head) + lone.total
            items = [(lone, 0, lone.total)]
        if lane is not None and lane.mask:
            self._messages(path, out, pieces, used, items, credit, news, wants, now, limit, lane, room)
        elif pieces:
            self._emit(path, out, pieces, used, items, credit, news, wants, now)
            if items is not None:
                path.probes = 0
        if others:
            self._copied([piece for run in path.runs[before:] for piece in pieces_of(run)], others)
        if path.limited and out:
            last = out[-1]
            out[-1] = bytes((last[0] | URGENT,)) + last[1:]
        return out

    def _messages(
        self,
        path: Path,
        out: list[bytes],
        pieces: list[Buffer],
        used: int,
        items: Items | None,
        credit: bool,
        news: int,
        wants: bool,
        now: float,
        limit: int,
        lane: Lane,
        room: int,
    ) -> None:
        """Go on with a packet that holds *pieces*: messages, as far as window and *limit* go."""
        payload = path.payload
        start_size = START_SIZE + ROUTE.size if lane.route else START_SIZE
        step = payload - DATA_SIZE
        while True:
            if len(out) >= limit:
                break
            if room < payload and not path.probes:
                path.limited = True
                break
            message = lane.pick()
            if message is None:
                break
            span = message.span()
            if span is None:
                raise AssertionError("picked a message with nothing to send")
            start, end = span
            left = end - start
            if start and not used and left >= step:
                count = min(left // step, limit - len(out), max(1, room // payload), lane.turn_room() // step + 1)
                out += self._cut(path, message, start, count, step, now)
                lane.served(message, count * step)
                room -= count * payload
                path.probes = 0
                continue
            head = DATA_SIZE if start else start_size
            space = payload - used - head
            if left > space and space < MIN_FRAGMENT:
                room -= self._emit(path, out, pieces, used, items, credit, news, wants, now)
                path.probes = 0
                pieces, used, credit, news, wants, items = [], 0, False, 0, False, None
                continue
            length = left if left <= space else space
            end = start + length
            if start:
                pieces.append(_pack_data(KIND_DATA, message.priority, length, message.id, start, message.total))
            else:
                pieces.append(start_of(message, length))
            pieces.append(message.piece(start, end))
            used += head + length
            items = [*(items or ()), (message, start, end)]
            message.took(start, end)
            lane.served(message, length)
            if used + start_size >= payload:
                room -= self._emit(path, out, pieces, used, items, credit, news, wants, now)
                path.probes = 0
                pieces, used, credit, news, wants, items = [], 0, False, 0, False, None
        if pieces:
            self._emit(path, out, pieces, used, items, credit, news, wants, now)
            if items is not None:
                path.probes = 0

    def copies(self, path: Path, now: float, limit: int) -> list[bytes]:
        """Packets with what went over another path already and is to go over this one too, as far as the window goes."""
        out: list[bytes] = []
        waiting = path.copies
        payload = path.payload
        while waiting and len(out) < limit:
            if path.congestion.window - path.in_flight < payload:
                path.limited = True
                break
            message, start, end = waiting.popleft()
            if message.done or (message.got is not None and not message.got.missing(start, end)):
                continue
            head = DATA_SIZE if start else len(start_of(message, 0))
            length = min(end - start, payload - head)
            if start + length < end:
                waiting.appendleft((message, start + length, end))
            end = start + length
            before = (
                _pack_data(KIND_DATA, message.priority, length, message.id, start, message.total) if start else start_of(message, length)
            )
            out.append(before + message.piece(start, end))
            run = Run(path.next_pn, path.next_pn, head + length, now)
            run.items = [(message, start, end)]
            run.copy = True
            path.next_pn += 1
            path.record(run, now)
        return out

    def _copied(self, pieces: Items, others: list[Path]) -> None:
        for other in others:
            other.copies.extend(pieces)
            while len(other.copies) > COPIES_MAX:
                other.copies.popleft()
                other.copies_dropped += 1

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
        return packets

    def _emit(
        self,
        path: Path,
        out: list[bytes],
        pieces: list[Buffer],
        used: int,
        items: Items | None,
        credit: bool,
        news: int,
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
        run.news = news
        path.record(run, now)
        return used
