"""The XDP program of a port, run by the kernel on single frames: every answer, and every counter."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import attrs
import pytest

from stack.ebpf.constants import MapType, Xdp
from stack.ebpf.map import Map
from stack.ebpf.program import Program
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import Reason
from stack.l2.forward.parts import CARRIED, FLOW, FLOW_KEY, KEY, ORDER_UNITS, PORT, REASONS, STATION, Maps
from stack.l2.forward.program import forwarding
from stack.wire.checksum import checksum

pytestmark = pytest.mark.priv

A, B, C = b"\2\0\0\0\0\x0a", b"\2\0\0\0\0\x0b", b"\2\0\0\0\0\x0c"
LONGEST = 1518


def index(number: int) -> bytes:
    return struct.pack("=I", number)


@attrs.define
class Bench:
    """Port 0 has A and C, port 1 has B. Behind port 1 is the loopback interface: a frame of a test run is redirected nowhere."""

    program: Program
    stations: Map
    outputs: Map
    ports: Map
    carried: Map
    reasons: Map
    flows: Map

    def run(self, destination: bytes, source: bytes, rest: bytes = bytes(50)) -> tuple[int, dict[Reason, int], int]:
        """The answer, the reasons that were counted, and the frames carried from port 0 to port 1."""
        before, frames = self.counted()
        answer = self.program.run(destination + source + rest).result
        after, now = self.counted()
        return answer, {reason: after[reason] - before[reason] for reason in Reason if after[reason] != before[reason]}, now - frames

    def counted(self) -> tuple[list[int], int]:
        values = [REASONS.unpack(value) for value in self.reasons.lookup_cpus(index(0)) or ()]
        pairs = [CARRIED.unpack(value) for value in self.carried.lookup_cpus(index(1)) or ()]
        return [sum(column) for column in zip(*values, strict=True)], sum(frames for frames, _ in pairs)

    def used(self, station: bytes) -> int:
        value = self.stations.lookup(KEY.pack(station))
        assert value is not None
        return int(STATION.unpack(value)[2])


@pytest.fixture
def bench() -> Iterator[Bench]:
    with (
        Map(MapType.HASH, KEY.size, STATION.size, 16) as stations,
        Map(MapType.DEVMAP, 4, 4, PORTS_MAX) as outputs,
        Map(MapType.ARRAY, 4, PORT.size, PORTS_MAX) as ports,
        Map(MapType.PERCPU_ARRAY, 4, CARRIED.size, PORTS_MAX * PORTS_MAX) as carried,
        Map(MapType.PERCPU_ARRAY, 4, REASONS.size, PORTS_MAX) as reasons,
        Map(MapType.HASH, FLOW_KEY.size, FLOW.size, 16) as flows,
        Program(forwarding(0, Maps(stations.fd, outputs.fd, ports.fd, carried.fd, reasons.fd, flows.fd)), "test") as program,
    ):
        for station, port in ((A, 0), (B, 1), (C, 0)):
            stations.update(KEY.pack(station), STATION.pack(port, 0, 0))
        for number in (0, 1):
            ports.update(index(number), PORT.pack(1, LONGEST, bytes(6)))
        outputs.update(index(1), index(socket.if_nametoindex("lo")))
        yield Bench(program, stations, outputs, ports, carried, reasons, flows)


def test_known_to_known_is_carried_and_marks_the_source(bench: Bench) -> None:
    assert bench.run(B, A) == (Xdp.REDIRECT, {}, 1)
    first = bench.used(A)
    assert first > 0
    assert bench.used(B) == 0
    assert bench.run(B, A) == (Xdp.REDIRECT, {}, 1)
    assert bench.used(A) - first < 2_000_000_000
    pairs = [CARRIED.unpack(value) for value in bench.carried.lookup_cpus(index(1)) or ()]
    assert sum(octets for _, octets in pairs) == 2 * 62


@pytest.mark.parametrize(
    ("destination", "source", "reason", "answer"),
    [
        (b"\xff" * 6, A, Reason.GROUP, Xdp.PASS),
        (b"\x01\x80\xc2\0\0\0", A, Reason.GROUP, Xdp.PASS),
        (b"\x03\0\0\0\0\x0b", A, Reason.GROUP, Xdp.PASS),
        (B, b"\2\0\0\0\0\xee", Reason.SOURCE, Xdp.PASS),
        (A, B, Reason.SOURCE, Xdp.PASS),
        (b"\2\0\0\0\0\xee", A, Reason.DESTINATION, Xdp.PASS),
        (C, A, Reason.SAME_PORT, Xdp.DROP),
    ],
)
def test_what_is_not_carried(bench: Bench, destination: bytes, source: bytes, reason: Reason, answer: Xdp) -> None:
    assert bench.run(destination, source) == (answer, {reason: 1}, 0)
    assert bench.used(A) == 0


@pytest.mark.parametrize(("port", "reason"), [(0, Reason.OFF), (1, Reason.OUTPUT_OFF)])
def test_ports_that_are_off(bench: Bench, port: int, reason: Reason) -> None:
    bench.ports.update(index(port), PORT.pack(0, LONGEST, bytes(6)))
    assert bench.run(B, A) == (Xdp.PASS, {reason: 1}, 0)


def test_a_port_that_has_just_gone_carries_nothing(bench: Bench) -> None:
    """Its settings are there still, its interface is not."""
    bench.outputs.delete(index(1))
    assert bench.run(B, A) == (Xdp.PASS, {Reason.OUTPUT_OFF: 1}, 0)


def test_the_longest_frame(bench: Bench) -> None:
    assert bench.run(B, A, bytes(LONGEST - 12)) == (Xdp.REDIRECT, {}, 1)
    assert bench.run(B, A, bytes(LONGEST - 11)) == (Xdp.PASS, {Reason.LONG: 1}, 0)
    assert bench.run(B, A) == (Xdp.PASS, {Reason.ORDER: 1}, 0), "a short frame overtakes the long one, which goes another way"
    value = bench.stations.lookup(KEY.pack(A))
    assert value is not None
    port, long_at, used = STATION.unpack(value)
    bench.stations.update(KEY.pack(A), STATION.pack(port, long_at - ORDER_UNITS, used))
    assert bench.run(B, A) == (Xdp.REDIRECT, {}, 1)


@pytest.mark.parametrize("size", [30, 1400, 5000, 8000])
def test_a_routed_packet_may_lie_in_several_buffers(bench: Bench, size: int) -> None:
    """Runs of segments and long frames of cards do: where the first buffer ends says nothing of where the packet does."""
    own, link = b"\2\0\0\0\0\1", bytes(range(12))
    source, destination = bytes((10, 9, 0, 1)), bytes((10, 9, 1, 1))
    bench.flows.update(FLOW_KEY.pack(0, 4, source, destination), FLOW.pack(1, 0, 0, link[:6], link[6:], 0, 0))
    bench.ports.update(index(0), PORT.pack(1, LONGEST, own))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 1, 0, 9, 17, 0, source, destination)
    packet = head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + bytes(size)
    whole, cut = b"\x08\0" + packet, b"\x08\0" + packet[:-1]
    fits = size < 1500
    assert bench.run(own, A, whole) == ((Xdp.REDIRECT, {}, 1) if fits else (Xdp.PASS, {Reason.LONG: 1}, 0))
    assert bench.run(own, A, cut) == (Xdp.PASS, {Reason.FOREIGN: 1}, 0)
    if not fits:
        short = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20, 1, 0, 9, 17, 0, source, destination)
        short = short[:10] + checksum(short).to_bytes(2, "big") + short[12:]
        assert bench.run(own, A, b"\x08\0" + short) == (Xdp.PASS, {Reason.ORDER: 1}, 0), "it must not overtake"
    bench.ports.update(index(1), PORT.pack(1, 9018, bytes(6)))
    bench.flows.update(FLOW_KEY.pack(0, 4, source, destination), FLOW.pack(1, 0, 0, link[:6], link[6:], 0, 0))
    assert bench.run(own, A, whole) == (Xdp.REDIRECT, {}, 1)


def test_a_station_behind_a_port_that_cannot_be(bench: Bench) -> None:
    bench.stations.update(KEY.pack(B), STATION.pack(PORTS_MAX, 0, 0))
    assert bench.run(B, A) == (Xdp.PASS, {Reason.DESTINATION: 1}, 0)


def test_frames_that_are_carried_are_not_changed(bench: Bench) -> None:
    frame = B + A + bytes(range(200))
    assert bench.program.run(frame).frame == frame
