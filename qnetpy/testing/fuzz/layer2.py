"""Fuzz targets of layer 2: what a station behind a port can send to a bridge, a spanning tree and an aggregate.

An item's first byte says where it comes in and how much time passes before it; the rest is what is sent.
"""

from __future__ import annotations

from stack.frame import BadFrame, Frame
from stack.l2.bridge import Bridge
from stack.l2.flowhash import flow_hash
from stack.l2.lacp.machine import Aggregator, LacpSettings
from stack.l2.macfilter import MacFilter, parse_rule
from stack.l2.stp.machine import SpanningTree
from stack.l2.stp.settings import PortSettings, Protocol, TreeSettings
from stack.wire.bpdu import Config, parse_bpdu
from stack.wire.lacp import parse_slow
from stack.wire.llc import SAP_STP, parse_llc
from stack.wire.vlan import UNTAGGED, tagged, untagged, vlan_of

MAC = bytes.fromhex("020000000001")
PORTS = 3
_SECONDS = (0.0, 0.001, 1.0, 20.0)


def _where(item: bytes) -> tuple[int, float, bytes]:
    """Port, seconds, and the rest."""
    head = item[0] if item else 0
    return 1 + head % PORTS, _SECONDS[head >> 6], item[1:]


def bpdus(items: list[bytes]) -> None:
    """BPDUs behind an LLC header or bare, to a bridge's tree."""
    now = 1000.0
    rapid = not items or not items[0] or bool(items[0][0] & 0x20)
    tree = SpanningTree(MAC, TreeSettings(Protocol.RSTP if rapid else Protocol.STP), now)
    for number in range(1, PORTS + 1):
        tree.add(number, PortSettings(point_to_point=number != PORTS), True, now)
    for item in items:
        number, seconds, data = _where(item)
        now = _tree_passes(tree, now, now + seconds)
        try:
            bpdu = parse_bpdu(parse_llc(data, SAP_STP) if len(data) > 60 else data)
        except BadFrame:
            continue
        if isinstance(bpdu, Config):
            again = parse_bpdu(bpdu.pack())
            assert again == bpdu
        tree.receive(number, bpdu, now)
    for _, told in tree.transmit():
        parse_bpdu(told)
    assert all(not tree.forwarding(number) or tree.learning(number) for number in range(1, PORTS + 1))


def _tree_passes(tree: SpanningTree, now: float, until: float) -> float:
    steps = 0
    while (due := tree.next_timeout()) is not None and due <= until:
        assert due > now or steps < 100
        steps += 1
        now = max(now, due)
        tree.handle_timeout(now)
    return until


def slow(items: list[bytes]) -> None:
    """LACPDUs and markers, to an aggregate."""
    now = 1000.0
    aggregate = Aggregator(MAC, LacpSettings(fast=bool(items and items[0] and items[0][0] & 0x20)))
    for number in range(1, PORTS + 1):
        aggregate.add(number, 0x8000, True, now)
    for item in items:
        number, seconds, data = _where(item)
        until, steps = now + seconds, 0
        while (due := aggregate.next_timeout()) is not None and due <= until:
            assert due > now or steps < 100
            steps += 1
            now = max(now, due)
            aggregate.handle_timeout(now)
        now = until
        try:
            pdu = parse_slow(data)
        except BadFrame:
            continue
        if pdu is not None:
            assert parse_slow(pdu.pack()) == pdu
            aggregate.receive(number, pdu, now)
        for _, told in aggregate.transmit():
            assert parse_slow(told) is not None
    assert set(aggregate.distributing()) <= set(range(1, PORTS + 1))


def bridge(items: list[bytes]) -> None:
    """Frames from all ports, and from our own stack: every frame that goes somewhere is one that came in."""
    machine = Bridge(MAC, maximum=4)
    for number in range(1, PORTS + 1):
        machine.add(bytes((2, 0, 0, 0, 1, number)))
    rules = MacFilter([parse_rule("block in on p1 src 02:00:00:00:00:00/ff:00:00:00:00:ff")])
    now = 1000.0
    for item in items:
        number, seconds, data = _where(item)
        now += seconds
        batch: list[Frame] = [memoryview(data), memoryview(data)]
        for decision in (machine.received(number, batch, now), machine.sent(number, batch)):
            for port, frames in decision.out.items():
                assert 1 <= port <= PORTS
                assert all(bytes(frame) == data for frame in frames)
        assert len(machine.stations) <= 4
        assert 0 <= flow_hash(data) < 1 << 32
        assert len(rules.passed("p1", True, batch)) <= 2
        if vlan_of(data) != UNTAGGED:
            assert untagged(tagged(data, 5, 0)) == data
    machine.stations.expire(now + 1e6)
    assert not len(machine.stations)
