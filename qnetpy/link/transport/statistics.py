"""Frozen copies of what a transport counts, for `status` and tests. Bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from qnetpy.link.transport.incoming import Inbox
from qnetpy.link.transport.outgoing import Outbox
from qnetpy.link.transport.path import Path


@attrs.define
class Counters:
    """What the machine dropped or refused, by reason."""

    no_such_path: int = 0
    after_close: int = 0
    protocol_errors: int = 0
    challenges_dropped: int = 0
    stray_responses: int = 0


@attrs.frozen
class PathStatistics:
    """One path."""

    payload: int
    """Largest plaintext known to pass."""
    window: int
    in_flight: int
    smoothed_rtt: float
    minimum_rtt: float
    packets_sent: int
    packets_received: int
    packets_lost: int
    """Taken for lost, of those sent."""
    packets_late: int
    """Of those, arrived after all."""
    timeouts: int
    reductions: int
    """Times the congestion window was lowered for loss."""
    packet_threshold: int
    mtu_probes: int
    mtu_changes: int
    state: str
    """usable, suspect (does not answer), down (our interface), peer down, or opening."""
    port: int
    peer_port: int
    bytes_sent: int
    """Of packets that carried anything to be acknowledged."""
    delivered: int
    """Of these, acknowledged."""
    copies_waiting: int
    copies_dropped: int
    suspect: bool
    runs: int
    """Records of packets in flight."""
    received_ranges: int

    @staticmethod
    def of(path: Path) -> PathStatistics:
        return PathStatistics(
            payload=path.payload,
            window=path.congestion.window,
            in_flight=path.in_flight,
            smoothed_rtt=path.rtt.smoothed,
            minimum_rtt=path.rtt.minimum,
            packets_sent=path.packets_sent,
            packets_received=path.packets_received,
            packets_lost=path.packets_lost,
            packets_late=path.packets_late,
            timeouts=path.timeouts,
            reductions=path.congestion.reductions,
            packet_threshold=path.packet_threshold,
            mtu_probes=path.mtu.probes_sent,
            mtu_changes=path.mtu.changes,
            state=path.state,
            port=path.port,
            peer_port=path.peer_port,
            bytes_sent=path.bytes_sent,
            delivered=path.delivered,
            copies_waiting=len(path.copies),
            copies_dropped=path.copies_dropped,
            suspect=path.suspect,
            runs=len(path.runs),
            received_ranges=len(path.received),
        )


@attrs.frozen
class TransportStatistics:
    """One transport. `outgoing_streams`, `incomplete`, `waiting` and `held` are 0 when everything has arrived."""

    backlog: int
    unacknowledged: int
    outgoing_streams: int
    messages_sent: int
    messages_received: int
    resent_bytes: int
    credit_blocked: int
    incomplete: int
    """Incoming messages that are not delivered."""
    waiting: int
    """Of these, complete ones behind another of their stream."""
    held: int
    """Credit in use by the peer."""
    duplicate_fragments: int
    delivered_ranges: int
    no_such_path: int
    """Packets dropped: their path was removed."""
    after_close: int
    """Packets dropped: the transport is closed."""
    protocol_errors: int
    challenges_dropped: int
    """CHALLENGEs not answered: too many of them at once."""
    stray_responses: int
    """RESPONSEs to no CHALLENGE of ours, or to an earlier one."""
    lanes: int
    """Routes on which messages wait, beside the plain one."""
    paths: Mapping[int, PathStatistics]


def collect(inbox: Inbox, outbox: Outbox, messages_sent: int, counters: Counters, paths: Mapping[int, Path]) -> TransportStatistics:
    """A copy of all that the parts of a transport count."""
    return TransportStatistics(
        backlog=outbox.backlog,
        unacknowledged=outbox.messages,
        outgoing_streams=outbox.streams(),
        messages_sent=messages_sent,
        messages_received=inbox.delivered,
        resent_bytes=outbox.resent_bytes,
        credit_blocked=outbox.credit_blocked,
        incomplete=len(inbox.open),
        waiting=inbox.waiting(),
        held=inbox.held(),
        duplicate_fragments=inbox.duplicates,
        delivered_ranges=len(inbox.done),
        no_such_path=counters.no_such_path,
        after_close=counters.after_close,
        protocol_errors=counters.protocol_errors,
        challenges_dropped=counters.challenges_dropped,
        stray_responses=counters.stray_responses,
        lanes=sum(lane.waiting() for lane in outbox.routed.values()),
        paths={ident: PathStatistics.of(path) for ident, path in paths.items()},
    )
