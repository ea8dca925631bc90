"""One path: packet numbers, acknowledgements both ways, RTT, loss detection and probe timeouts of RFC 9002, window and packet size.

Sent packets are accounted in *runs*: consecutive packet numbers that carry consecutive fragments of one message are one record, and an
ACK or a
loss takes a record whole or splits it. A bulk transfer therefore costs the path a few operations per burst and not per packet. Packets
that carry only an ACK are not recorded: nobody acknowledges them by themselves.

Differs from RFC 9002: the packet threshold and the time threshold grow when packets that were taken for lost arrive after all, as in RFC
8985 (RACK), so that reordering does not pass for congestion; probe timeouts stop backing off at `max_pto`.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

from qnetpy.link.congestion import AckSample, create
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.constants import (
    BASE_PAYLOAD,
    GRANULARITY,
    HURRIED_TIMEOUT,
    HURRIED_TRIPS,
    LOST_MEMORY,
    MAX_ACK_RANGES,
    MAX_PACKET_THRESHOLD,
    PACKET_THRESHOLD,
    PERSISTENT_THRESHOLD,
    SUSPECT_TIMEOUTS,
)
from qnetpy.link.transport.events import Event, MtuChanged, PathFound, PathLost, PathRefused
from qnetpy.link.transport.items import pack_ack
from qnetpy.link.transport.mtu import MtuSearch
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.outmessage import OutMessage
from qnetpy.link.transport.ranges import RangeSet
from qnetpy.link.transport.rtt import RttEstimator
from qnetpy.link.transport.standing import Standing
from resmgr.errors import BadMessage

FORGET_REORDERING_ROUNDS: Final = 64
FORGET_LATE: Final = 0.005
"""Four times this, or four round trips: how long a packet may be late and still be noticed."""


class Run:
    """Packets *first* to *last*, sent together, each *size* bytes, with the bytes [offset, stop) of *message* in steps of *step*.

    A run of one packet may instead carry several pieces (`items`), a CREDIT, PATH items up to the `news`-th, or be an MTU probe of size
    `probe`.
    """

    __slots__ = (
        "copy",
        "credit",
        "delivered",
        "delivered_at",
        "first",
        "first_sent",
        "items",
        "last",
        "message",
        "news",
        "offset",
        "probe",
        "sent",
        "size",
        "step",
        "stop",
        "timed_out",
    )

    def __init__(self, first: int, last: int, size: int, sent: float) -> None:
        self.first = first
        self.last = last
        self.size = size
        self.sent = sent
        self.message: OutMessage | None = None
        self.offset = 0
        self.stop = 0
        self.step = 0
        self.items: list[tuple[OutMessage, int, int]] | None = None
        self.copy = False
        """It went over another path too, which sees to it that it arrives."""
        self.credit = False
        self.news = 0
        self.probe = 0
        self.delivered = 0
        self.delivered_at = 0.0
        self.first_sent = 0.0
        self.timed_out = False
        """Taken for lost because of time, not because of packets that overtook it."""

    def __lt__(self, other: Run) -> bool:
        return self.first < other.first

    def split(self, last: int) -> Run:
        """Cut off and return the packets up to *last*; the rest stays here. Only runs of several packets are ever split."""
        head = Run(self.first, last, self.size, self.sent)
        head.message = self.message
        head.step = self.step
        head.offset = self.offset
        middle = self.offset + (last - self.first + 1) * self.step
        head.stop = middle
        head.delivered = self.delivered
        head.delivered_at = self.delivered_at
        head.first_sent = self.first_sent
        head.timed_out = self.timed_out
        self.first = last + 1
        self.offset = middle
        return head


def take(runs: list[Run], ranges: list[tuple[int, int]]) -> list[Run]:
    """Remove from *runs* what the inclusive ascending *ranges* cover, splitting runs at their edges; returns it, ascending."""
    if len(runs) == 1 and runs[0].first >= ranges[-1][0] and runs[0].last <= ranges[-1][1]:
        taken = runs[:]
        runs.clear()
        return taken
    taken = []
    kept: list[Run] = []
    index = 0
    total = len(runs)
    for low, high in ranges:
        if index >= total:
            break
        if high < runs[index].first:
            continue
        while index < total:
            run = runs[index]
            if run.first > high:
                break
            if run.last < low:
                kept.append(run)
                index += 1
                continue
            if run.first < low:
                kept.append(run.split(low - 1))
            if run.last > high:
                taken.append(run.split(high))
                break
            taken.append(run)
            index += 1
    if kept:
        runs[:index] = kept
    else:
        del runs[:index]
    return taken


class Path(Standing):
    """State of one path. The transport fills packets and calls `record`; everything about acknowledgement and time is here."""

    __slots__ = (
        "_delivered_at", "_episode_late", "_episode_lost", "_first_sent", "_max_pto", "_newest_acked_sent", "_newest_large_sent", "_out",
        "_outbox", "_quiet_rounds", "_round_mark", "_sample", "ack_at", "ack_now", "attention", "bytes_sent", "congestion",
        "credit_lost", "delivered", "expected", "found", "ident", "in_flight", "largest_acked", "largest_at", "last_received", "limited",
        "loss_at", "lost_runs", "mtu", "news_acked", "news_lost", "next_pn", "packet_threshold", "packets_late", "packets_lost",
        "packets_received", "packets_sent", "payload", "pending", "ping_due", "probes", "pto_count", "pto_from", "received", "rtt",
        "runs", "time_eighths", "timeouts",
    )  # fmt: skip

    def __init__(
        self, ident: int, max_payload: int, config: TransportConfig, outbox: Outbox, out: list[Event], now: float, rtt: float | None
    ) -> None:
        super().__init__()
        self.ident = ident
        self.mtu = MtuSearch(max_payload, config.mtu_retry, config.mtu_probe)
        self.payload = self.mtu.payload
        self.rtt = RttEstimator(config.initial_rtt if rtt is None else rtt, now)
        self.congestion = create(config.congestion, self.payload, config.max_window)
        self._outbox = outbox
        self._out = out
        self._max_pto = config.max_pto

        self.received = RangeSet()
        self.expected = 0
        """Largest packet number received, plus one."""
        self.largest_at = now
        self.pending = 0
        """Packets that want an ACK and have none."""
        self.ack_now = False
        self.ack_at: float | None = None
        """When an owed ACK goes out, unless it can ride with data before."""
        self.last_received = now

        self.next_pn = 0
        self.runs: list[Run] = []
        self.in_flight = 0
        self.largest_acked = -1
        self.loss_at: float | None = None
        self.pto_from = now
        """The latest of: the first of what is in flight was sent, an ACK of something came, a probe timeout was. What is sent after that
        does not put it off, as it would by RFC 9002: who sends a little all the time would not notice that a path is dead."""
        self.pto_count = 0
        self.probes = 0
        """Packets that may be sent whatever the window says, after a probe timeout."""
        self.ping_due = False
        self.limited = False
        """The last transmission ended for want of window."""
        self.attention = False
        """The transport should look at the next three."""
        self.credit_lost = False
        """A CREDIT may not have arrived."""
        self.news_lost = False
        self.found = False
        """It answers again, since the owner last looked."""
        """Nor may a PATH."""
        self.news_acked = 0
        """Sequence of the newest PATH that arrived, to be looked at by the transport."""

        self.lost_runs: list[Run] = []
        self.packet_threshold = PACKET_THRESHOLD
        self.time_eighths = 1
        """The time threshold is 1 + this / 8 round trips (kTimeThreshold is 9/8)."""
        self._quiet_rounds = 0
        self._episode_lost = 0
        self._episode_late = 0
        self._newest_acked_sent = -1.0
        self._newest_large_sent = -1.0

        self.delivered = 0
        self._delivered_at = now
        self._first_sent = now
        self._round_mark = 0
        self._sample = AckSample()

        self.packets_sent = 0
        self.packets_received = 0
        self.packets_lost = 0
        self.packets_late = 0
        self.timeouts = 0
        self.bytes_sent = 0

    # States

    def set_states(self, *, valid: bool | None = None, up: bool | None = None, peer_up: bool | None = None) -> None:
        """Note what changed. A path that does not work gives up what is in flight; one that works again is asked before it is trusted."""
        before = self.open
        if valid is not None:
            self.valid = valid
        if up is not None:
            self.up = up
        if peer_up is not None:
            self.peer_up = peer_up
        self.open = self.valid and self.up and self.peer_up
        if before and not self.open:
            self.abandon(keep_probing=False)
            self.copies.clear()
            self.pto_count = 0
            self.probes = 0
            self.suspect = True
        elif self.open and not before:
            self.ping_due = True

    def resize(self, max_payload: int) -> None:
        """The interface's MTU is another: the search for the packet size begins anew."""
        self.mtu.resize(max_payload)
        if self.payload != self.mtu.payload:
            self._set_payload()

    # Receiving

    def ack_item(self, now: float) -> bytes:
        """An ACK of the newest ranges; nothing is owed afterwards."""
        self.pending = 0
        self.ack_now = False
        self.ack_at = None
        delay = now - self.largest_at
        return pack_ack(self.received.bounds[-2 * MAX_ACK_RANGES :], delay if delay > 0 else 0.0)

    # Sending

    def record(self, run: Run, now: float) -> None:
        """*run* has been put into packets and will be acknowledged."""
        flight = run.size * (run.last - run.first + 1)
        if not self.in_flight:
            self._first_sent = now
            self._delivered_at = now
        self.in_flight += flight
        self.bytes_sent += flight
        run.delivered = self.delivered
        run.delivered_at = self._delivered_at
        run.first_sent = self._first_sent
        if not self.runs:
            self.pto_from = now
        self.runs.append(run)

    # Acknowledgement

    def on_ack(self, delay: float, ranges: list[tuple[int, int]], now: float) -> None:
        """An ACK came; *ranges* as of `read_ack`. Raises BadMessage when it is about packets never sent."""
        top = ranges[-1][1]
        if top >= self.next_pn:
            raise BadMessage("ACK of a packet never sent")
        newly = take(self.runs, ranges)
        if self.lost_runs and ranges[0][0] <= self.lost_runs[-1].last:
            late = take(self.lost_runs, ranges)
            if late:
                self._on_late(late, top, now)
        before = self._newest_acked_sent
        if top > self.largest_acked:
            self.largest_acked = top
        if newly:
            self._on_newly(newly, top, delay, now)
        if self.runs and self.runs[0].first < self.largest_acked:
            self._detect(now, newly, before)
        else:
            self.loss_at = None

    def _on_newly(self, newly: list[Run], top: int, delay: float, now: float) -> None:
        sample = self._sample
        sample.in_flight = self.in_flight
        acked = 0
        outbox = self._outbox
        for run in newly:
            acked += run.size * (run.last - run.first + 1)
            message = run.message
            if message is not None:
                outbox.acked(message, run.offset, run.stop)
            elif run.items is not None:
                for message, start, stop in run.items:
                    outbox.acked(message, start, stop)
            if run.size > BASE_PAYLOAD:
                self.mtu.suspicion = 0
                self._newest_large_sent = run.sent
            if run.news:
                self.attention = True
                if run.news > self.news_acked:
                    self.news_acked = run.news
            if run.probe and self.mtu.on_acked(run.probe, now):
                self._set_payload()
        newest = newly[-1]
        self.in_flight -= acked
        self._newest_acked_sent = newest.sent
        if newest.last == top:
            self.rtt.update(now - newest.sent, delay, now)
        self.delivered += acked
        elapsed = max(newest.sent - newest.first_sent, now - newest.delivered_at)
        rtt = self.rtt
        sample.rate = (self.delivered - newest.delivered) / elapsed if elapsed > 0 and elapsed >= rtt.minimum else 0.0
        sample.new_round = newest.delivered >= self._round_mark
        if sample.new_round:
            self._round_mark = self.delivered
            self._quiet_rounds += 1
            if self._quiet_rounds >= FORGET_REORDERING_ROUNDS:
                self._quiet_rounds = 0
                self.packet_threshold = max(PACKET_THRESHOLD, self.packet_threshold // 2)
                self.time_eighths = max(1, self.time_eighths // 2)
        self._delivered_at = now
        self._first_sent = newest.sent
        self.pto_from = now
        self.pto_count = 0
        self.probes = 0
        if self.suspect:
            self.suspect = False
            self.found = self.attention = True
            self._out.append(PathFound(self.ident))
        sample.now = now
        sample.acked = acked
        sample.sent = newest.sent
        sample.limited = self.limited
        sample.rtt = rtt.latest
        sample.smoothed = rtt.smoothed
        sample.minimum = rtt.minimum
        self.congestion.on_ack(sample)

    def _on_late(self, late: list[Run], top: int, now: float) -> None:
        """Packets that were taken for lost have arrived: learn how far this path reorders, and undo the reduction if they explain it."""
        self._quiet_rounds = 0
        for run in late:
            count = run.last - run.first + 1
            self.packets_late += count
            self._episode_late += count
            if run.timed_out:
                self.time_eighths = min(8, self.time_eighths + 1)
            else:
                self.packet_threshold = min(MAX_PACKET_THRESHOLD, max(self.packet_threshold, top - run.first + 1))
            if run.message is not None:
                self._outbox.acked(run.message, run.offset, run.stop)
            elif run.items is not None:
                for message, start, stop in run.items:
                    self._outbox.acked(message, start, stop)
            if run.probe and self.mtu.on_acked(run.probe, now):
                self._set_payload()
        if self._episode_lost and self._episode_late >= self._episode_lost:
            self._episode_lost = self._episode_late = 0
            self.congestion.on_spurious()

    # Loss

    def _detect(self, now: float, newly: list[Run], newest_before: float) -> None:
        """RFC 9002 section 6.1: what was sent before the largest acknowledged packet, and long enough ago or far enough below, is lost."""
        self.loss_at = None
        rtt = self.rtt
        delay = max(rtt.latest, rtt.smoothed) * (1 + self.time_eighths / 8)
        if delay < GRANULARITY:
            delay = GRANULARITY
        largest = self.largest_acked
        limit = largest - self.packet_threshold
        lost: list[Run] = []
        runs = self.runs
        index = 0
        for run in runs:
            if run.first > largest:
                break
            timed_out = run.sent + delay <= now
            bound = largest if timed_out else limit
            if run.first > bound:
                self.loss_at = run.sent + delay
                break
            if run.last > bound:
                head = run.split(bound)
                head.timed_out = timed_out
                lost.append(head)
                if not timed_out and run.first <= largest:
                    self.loss_at = run.sent + delay
                break
            run.timed_out = timed_out
            lost.append(run)
            index += 1
        if lost:
            del runs[:index]
            self._on_lost(lost, now, newly, newest_before)

    def _on_lost(self, lost: list[Run], now: float, newly: list[Run], newest_before: float) -> None:
        outbox = self._outbox
        lost_bytes = 0
        packets = 0
        black_hole = False
        newest = lost[-1].sent
        for run in lost:
            count = run.last - run.first + 1
            if run.probe:
                self.mtu.on_lost(run.probe, now)
            else:
                packets += count
                lost_bytes += run.size * count
            self._resend(run, outbox)
            if run.size > BASE_PAYLOAD and run.sent > self._newest_large_sent and self.mtu.on_large_lost(count, now):
                black_hole = True
            self.lost_runs.append(run)
        self._forget(now)
        self.in_flight -= lost_bytes
        if black_hole:
            self._set_payload()
        if not packets:
            return
        self.packets_lost += packets
        controller = self.congestion
        if newest > controller.recovery_start:
            self._episode_lost = self._episode_late = 0
        self._episode_lost += packets
        controller.on_loss(lost_bytes, newest, now)
        rtt = self.rtt
        if rtt.sampled and newest - lost[0].sent > rtt.pto() * PERSISTENT_THRESHOLD and lost[0].sent > newest_before:
            oldest = lost[0].sent
            if not any(oldest < run.sent < newest for run in newly):
                controller.on_persistent_congestion()

    def _forget(self, now: float) -> None:
        remembered = self.lost_runs
        old = now - 4 * max(self.rtt.smoothed, FORGET_LATE)
        keep = max(0, len(remembered) - LOST_MEMORY)
        while keep < len(remembered) and remembered[keep].sent < old:
            keep += 1
        del remembered[:keep]

    def _resend(self, run: Run, outbox: Outbox) -> None:
        if run.news:
            self.news_lost = self.attention = True
        if run.copy:
            return
        if run.message is not None:
            outbox.lost(run.message, run.offset, run.stop)
        elif run.items is not None:
            for message, start, stop in run.items:
                outbox.lost(message, start, stop)
        if run.credit:
            self.credit_lost = self.attention = True

    def _set_payload(self) -> None:
        self.payload = self.mtu.payload
        self.congestion.set_mss(self.payload)
        self._out.append(MtuChanged(self.ident, self.payload))

    def abandon(self, keep_probing: bool) -> None:
        """Everything in flight goes back to be sent again, here or on another path. Late ACKs still count."""
        runs = self.runs
        self.runs = []
        self.in_flight = 0
        self.loss_at = None
        for run in runs:
            self._resend(run, self._outbox)
            if run.probe:
                self.mtu.on_lost(run.probe, run.sent)
            insort(self.lost_runs, run)
        if keep_probing:
            self.ping_due = True

    # Time

    def pto_at(self) -> float:
        interval = self.rtt.pto()
        if self.hurried and interval > HURRIED_TIMEOUT:
            interval = min(interval, max(HURRIED_TIMEOUT, HURRIED_TRIPS * self.rtt.minimum))
        count = self.pto_count
        if count:
            limit = self._max_pto if self._max_pto > interval else interval
            interval = limit if count > 16 else min(interval * (1 << count), limit)
        return self.pto_from + interval

    def next_timeout(self) -> float | None:
        """When `on_timeout` wants to be called; None while nothing is pending."""
        when = self.ack_at
        if self.loss_at is not None:
            if when is None or self.loss_at < when:
                when = self.loss_at
        elif self.runs:
            pto = self.pto_at()
            if when is None or pto < when:
                when = pto
        retry = self.mtu.retry_at
        if retry is not None and (when is None or retry < when):
            when = retry
        validation = self.validation
        if validation is not None and not validation.due and self.up and (when is None or validation.again_at < when):
            when = validation.again_at
        return when

    def on_timeout(self, now: float) -> None:
        """Whatever is due at *now*; afterwards `next_timeout` is later than *now*, or something is to be sent."""
        if self.ack_at is not None and self.ack_at <= now:
            self.ack_at = None
            self.ack_now = True
        if self.mtu.retry_at is not None and self.mtu.retry_at <= now:
            self.mtu.on_retry()
        validation = self.validation
        if validation is not None and self.up:
            self.control_due = True
        if validation is not None and self.up and validation.on_timeout(now):
            self.validation = None
            self._out.append(PathRefused(self.ident))
        if self.loss_at is not None:
            if self.loss_at <= now:
                self._detect(now, [], self._newest_acked_sent)
        elif self.runs and self.pto_at() <= now:
            self._on_pto(now)

    def _on_pto(self, now: float) -> None:
        """RFC 9002 section 6.2.4: two probes, one small that passes whatever the packet size, one with the oldest data in flight."""
        self.pto_from = now
        self.pto_count += 1
        self.timeouts += 1
        self.ping_due = True
        self.probes = 1
        for run in self.runs:
            if run.copy:
                continue
            if run.message is not None:
                self._outbox.lost(run.message, run.offset, min(run.stop, run.offset + run.step))
                break
            if run.items is not None:
                for message, start, stop in run.items:
                    self._outbox.lost(message, start, stop)
                break
        if self.pto_count >= SUSPECT_TIMEOUTS and not self.suspect:
            self.suspect = True
            self._out.append(PathLost(self.ident))

    def stop(self) -> None:
        """The transport is closed: no timer, nothing in flight."""
        self.runs = []
        self.in_flight = 0
        self.loss_at = self.ack_at = self.mtu.retry_at = self.validation = None
        self.responses.clear()
        self.copies.clear()
