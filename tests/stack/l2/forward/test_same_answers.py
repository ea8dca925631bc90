"""The kernel's program and the plain reading of docs/stack/forwarding.md, on the same frames: good ones, and ones with changed bytes.

What worker threads ask of a routed packet (`stack.l2.forward.packets`) is judged by the fuzzer (`qnetpy.testing.fuzz.rewriting`).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import attrs
import pytest

from qnetpy.testing.fuzz.rewriting import NEXT_LINK, plain_flow, plain_next
from stack.ebpf.constants import MapType, Xdp
from stack.ebpf.map import Map
from stack.ebpf.program import Program
from stack.l2.engine import PORTS_MAX
from stack.l2.forward.carrier import FlowKey, Reason
from stack.l2.forward.parts import CARRIED, FLOW, FLOW_KEY, KEY, PORT, REASONS, STATION, Maps
from stack.l2.forward.program import forwarding
from stack.wire.checksum import checksum
from tests.stack.l2.forward.test_program import LONGEST, A, B, C, index
from tests.stack.l2.forward.test_routed import packet4, packet6

pytestmark = pytest.mark.priv

OWN = b"\2\0\0\0\0\x99"
PORTS = {A: 0, B: 1, C: 0}
FRAMES = 1500


@attrs.frozen
class Kernel:
    program: Program
    reasons: Map
    carried: Map
    outputs: Map

    def counted(self) -> list[int]:
        values = [REASONS.unpack(value) for value in self.reasons.lookup_cpus(index(0)) or ()]
        pairs = [CARRIED.unpack(value) for value in self.carried.lookup_cpus(index(1)) or ()]
        return [*(sum(column) for column in zip(*values, strict=True)), sum(frames for frames, _ in pairs)]

    def answer(self, frame: bytes) -> tuple[int, str, bytes]:
        """What the program returns, why (or `carried`), and the frame afterwards."""
        before = self.counted()
        run = self.program.run(frame)
        raised = [place for place, (old, new) in enumerate(zip(before, self.counted(), strict=True)) if old != new]
        assert len(raised) == 1
        return run.result, "carried" if raised[0] == len(Reason) else Reason(raised[0]).name, run.frame


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """Port 0, with the address OWN, has A and C, port 1 has B. Flows of `packet4` and `packet6` leave through port 1."""
    with (
        Map(MapType.HASH, KEY.size, STATION.size, 16) as stations,
        Map(MapType.DEVMAP, 4, 4, PORTS_MAX) as outputs,
        Map(MapType.ARRAY, 4, PORT.size, PORTS_MAX) as ports,
        Map(MapType.PERCPU_ARRAY, 4, CARRIED.size, PORTS_MAX * PORTS_MAX) as carried,
        Map(MapType.PERCPU_ARRAY, 4, REASONS.size, PORTS_MAX) as reasons,
        Map(MapType.HASH, FLOW_KEY.size, FLOW.size, 16) as flows,
        Program(forwarding(0, Maps(stations.fd, outputs.fd, ports.fd, carried.fd, reasons.fd, flows.fd)), "test") as program,
    ):
        for station, port in PORTS.items():
            stations.update(KEY.pack(station), STATION.pack(port, 0, 0))
        for number, own in ((0, OWN), (1, bytes(6))):
            ports.update(index(number), PORT.pack(1, LONGEST, own))
        for key in known():
            flows.update(FLOW_KEY.pack(0, 4 if len(key[0]) == 4 else 6, *key), FLOW.pack(1, 0, 0, NEXT_LINK[:6], NEXT_LINK[6:], 0, 0))
        yield Kernel(program, reasons, carried, outputs)


def known() -> set[FlowKey]:
    keys = {plain_flow(bytes(12) + kind + packet) for kind, packet in ((b"\x08\0", packet4()), (b"\x86\xdd", packet6()))}
    return {key for key in keys if key is not None}


def expected(frame: bytes, flows: set[FlowKey], there: bool) -> tuple[int, str, bytes]:
    """*there*: the interface of port 1 is. Else what would be carried goes up, and what was changed for it is dropped."""
    to, source = frame[:6], frame[6:12]
    if to[0] & 1:
        reason = Reason.GROUP
    elif to == OWN:
        key = plain_flow(frame)
        if key in flows:
            return (Xdp.REDIRECT, "carried", plain_next(frame)) if there else (Xdp.DROP, Reason.NOT_SENT.name, plain_next(frame))
        reason = Reason.FOREIGN if key is None else Reason.FLOW
    elif PORTS.get(source) != 0:
        reason = Reason.SOURCE
    elif to not in PORTS:
        reason = Reason.DESTINATION
    elif PORTS[to] == 0:
        return Xdp.DROP, Reason.SAME_PORT.name, frame
    else:
        return (Xdp.REDIRECT, "carried", frame) if there else (Xdp.PASS, Reason.OUTPUT_OFF.name, frame)
    return Xdp.PASS, reason.name, frame


def frames(seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    for _ in range(FRAMES):
        kind, made = dice.choice(((b"\x08\0", packet4), (b"\x86\xdd", packet6)))
        packet = bytearray(made(dice.randbytes(dice.choice((0, 1, 30, 999)))))
        for _ in range(dice.choice((0, 0, 1, 1, 2))):
            # The header's bytes, and those of its fields that decide most of all.
            place = dice.choice((dice.randrange(len(packet)), dice.randrange(min(len(packet), 40)), 0, 2, 3, 4, 5, 6, 7, 8))
            packet[place] = dice.choice((0, 1, 2, 0xFF, packet[place] ^ 1 << dice.randrange(8), dice.randrange(256)))
        if kind == b"\x08\0" and dice.random() < 0.7:
            packet[10:12] = bytes(2)
            packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
        if dice.random() < 0.2:
            del packet[dice.randrange(len(packet) + 1) :]
        if dice.random() < 0.05:
            kind = dice.choice((b"\x81\0", b"\x88\xb5", b"\x08\x06", b"\0\x2e"))
        to, source = dice.choice((OWN, OWN, OWN, A, B, C, b"\xff" * 6, dice.randbytes(6))), dice.choice((A, A, A, B, C, dice.randbytes(6)))
        yield to + source + kind + bytes(packet)


@pytest.mark.parametrize(("seed", "there"), [(0, True), (1, False)])
def test_the_kernel_does_what_is_written(kernel: Kernel, seed: int, there: bool) -> None:
    flows, seen = known(), set()
    if there:
        kernel.outputs.update(index(1), index(socket.if_nametoindex("lo")))
    for frame in frames(seed):
        answer = kernel.answer(frame)
        assert answer == expected(frame, flows, there), (seed, frame.hex())
        seen.add((answer[1], frame[:6] == OWN))
    sent = {("carried", True), ("carried", False)} if there else {("NOT_SENT", True), ("OUTPUT_OFF", False)}
    assert seen >= {*sent, ("FOREIGN", True), ("FLOW", True), ("SAME_PORT", False), ("GROUP", False)}
