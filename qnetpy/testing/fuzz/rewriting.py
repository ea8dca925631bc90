"""Fuzz targets of what makes other frames of a frame: runs cut into segments, routed packets, VLAN tags; and an aggregate with a forger on
some of its ports.

Judges are plain readings of the standards: checksums word by word, every header written anew. They share no code with what they judge.
"""

from __future__ import annotations

from stack.core.runs import cut_runs
from stack.core.tags import sort_out
from stack.frame import BadFrame, Frame
from stack.l2.flowhash import flow_hash
from stack.l2.forward.packets import flow_of, pass_on
from stack.l2.lacp.machine import Aggregator, LacpSettings
from stack.wire.ip import parse_ip
from stack.wire.lacp import parse_slow
from stack.wire.run import Run
from stack.wire.segmentation import SEGMENTS_MAX, finished
from stack.wire.virtio_net import GSO_NONE, NEEDS_CSUM, SIZE, VirtioNet

NEXT_LINK = bytes.fromhex("02aa0000000102aa00000002")
TAG_TYPES = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
EXTENSIONS = (0, 43, 44, 51, 60)
_SECONDS = (0.0, 0.02, 0.3, 2.1)


def word_sum(data: bytes | bytearray) -> int:
    """One's complement sum of 16-bit words, as RFC 1071 begins."""
    total = 0
    for place in range(0, len(data), 2):
        total += data[place] << 8 | (data[place + 1] if place + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return total


# Runs


def runs(data: bytes) -> None:
    """A virtio-net header and a frame, as a driver gets them: what is cut out of it is what was in it, segment by segment."""
    header, frame = VirtioNet.parse(data), data[SIZE:]
    if header.gso_type == GSO_NONE:
        _partial(header, frame)
        return
    run = Run.make(header, frame)
    segments = [bytes(one) for one in run.segments()]
    assert segments == plain_segments(run.header, frame)
    assert bytes(run) == frame
    assert len(segments) == run.pieces <= SEGMENTS_MAX
    assert max(map(len, segments)) == min(run.parts.longest, len(run))
    assert [bytes(one) for one in finished(header, memoryview(bytearray(frame)))] == segments
    # What is said of it to who cuts it instead of us must come to the same.
    assert [bytes(one) for one in Run.make(VirtioNet.parse(run.header.pack()), frame).segments()] == segments
    if run.header.flags & NEEDS_CSUM:
        assert run.header.csum_offset == (16 if run.parts.protocol == 6 else 6)
    batch: list[Frame] = [b"before", run, b"between", run.copied()]
    assert cut_runs(batch) == [b"before", *segments, b"between", *segments]
    for mtu in (46, 576, 1500, 65535):
        assert run.fits(mtu) == all(len(one) <= mtu + 14 + (4 if frame[12:14] in TAG_TYPES else 0) for one in segments)


def _partial(header: VirtioNet, frame: bytes) -> None:
    (made,) = finished(header, memoryview(bytearray(frame)))
    expected = bytearray(frame)
    if header.flags & NEEDS_CSUM:
        place = header.csum_start + header.csum_offset
        expected[place : place + 2] = (0xFFFF - word_sum(frame[header.csum_start :]) or 0xFFFF).to_bytes(2, "big")
    assert bytes(made) == bytes(expected)


def plain_segments(header: VirtioNet, frame: bytes) -> list[bytes]:
    """What a run is on a wire; *header* has been checked."""
    network = 14
    while frame[network - 2 : network] in TAG_TYPES:
        network += 4
    four = frame[network] >> 4 == 4
    transport = network + ((frame[network] & 15) * 4 if four else 40)
    if header.flags & NEEDS_CSUM:
        transport = header.csum_start
    tcp = header.gso_type & 0x7F != 5
    payload = transport + ((frame[transport + 12] >> 4) * 4 if tcp else 8)
    made: list[bytes] = []
    for number, place in enumerate(range(payload, len(frame), header.gso_size)):
        head, body = bytearray(frame[:payload]), frame[place : place + header.gso_size]
        length = len(head) - network + len(body)
        if four:
            identification = int.from_bytes(head[network + 4 : network + 6], "big") + number
            head[network + 2 : network + 6] = length.to_bytes(2, "big") + (identification & 0xFFFF).to_bytes(2, "big")
            head[network + 10 : network + 12] = bytes(2)
            end = network + (head[network] & 15) * 4
            head[network + 10 : network + 12] = (0xFFFF - word_sum(head[network:end])).to_bytes(2, "big")
            addresses = bytes(head[network + 12 : network + 20])
        else:
            head[network + 4 : network + 6] = (length - 40).to_bytes(2, "big")
            addresses = bytes(head[network + 8 : network + 40])
        size = len(head) - transport + len(body)
        if tcp:
            sequence = int.from_bytes(head[transport + 4 : transport + 8], "big") + place - payload
            head[transport + 4 : transport + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            if number:
                head[transport + 13] &= 0x7F
            if place + header.gso_size < len(frame):
                head[transport + 13] &= 0xF6
        else:
            head[transport + 4 : transport + 6] = size.to_bytes(2, "big")
        at = transport + (16 if tcp else 6)
        head[at : at + 2] = bytes(2)
        pseudo = addresses + size.to_bytes(4, "big") + bytes((0, 0, 0, 6 if tcp else 17))
        check = 0xFFFF - word_sum(pseudo + head[transport:] + body)
        head[at : at + 2] = (check if tcp else check or 0xFFFF).to_bytes(2, "big")
        made.append(bytes(head) + body)
    return made


# Routed packets


def flows(data: bytes) -> None:
    """A frame for our address: whether it may be passed on without the IP layer, and what it is on the next link."""
    before, behind = b"before", b"behind"
    memory = memoryview(bytearray(before + data + behind))
    key = flow_of(memory, len(before), len(data))
    assert key == plain_flow(data)
    if key is not None:
        header = parse_ip(data[14:])
        assert (header.source, header.destination, header.fragment) == (*key, False)
        pass_on(memory, len(before), NEXT_LINK)
        assert bytes(memory) == before + plain_next(data) + behind
        again = flow_of(memory, len(before), len(data))
        assert again == (key if data[22 if data[12] == 8 else 21] > 2 else None)
    _headers(data)


def _headers(data: bytes) -> None:
    """The header for who sorts packets, and the flow for who sorts frames onto links."""
    try:
        header = parse_ip(data[14:])
    except BadFrame:
        return
    assert 20 <= header.payload <= header.end <= len(data) - 14
    kind = {4: b"\x08\x00", 6: b"\x86\xdd"}[header.version]
    frame = data[:12] + kind + data[14:]
    extended = header.version == 6 and header.payload != 40
    if header.end - header.payload > 4 and not header.fragment and not extended:
        # What is behind the ports is not looked at.
        place = 14 + header.payload + 4
        assert flow_hash(frame) == flow_hash(frame[:place] + bytes((frame[place] ^ 0xFF,)) + frame[place + 1 :])


def plain_flow(frame: bytes) -> tuple[bytes, bytes] | None:
    """The table of docs/stack/forwarding.md, Routed flows."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and len(packet) >= 20:
        size, fragment = int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[6:8], "big")
        fits = packet[0] == 0x45 and 20 <= size <= len(packet)
        whole = not fragment & 0x2000 and not fragment & 0x1FFF
        if fits and whole and packet[8] > 1 and word_sum(packet[:20]) == 0xFFFF:
            return packet[12:16], packet[16:20]
    if kind == b"\x86\xdd" and len(packet) >= 40:
        fits = packet[0] >> 4 == 6 and int.from_bytes(packet[4:6], "big") + 40 <= len(packet)
        if fits and packet[6] not in EXTENSIONS and packet[7] > 1:
            return packet[8:24], packet[24:40]
    return None


def plain_next(frame: bytes) -> bytes:
    """A packet of a flow on the link behind: other addresses, a TTL that is one less, a checksum made anew."""
    made = bytearray(NEXT_LINK + frame[12:])
    if frame[12] == 8:
        made[22] -= 1
        made[24:26] = bytes(2)
        made[24:26] = (0xFFFF - word_sum(made[14:34])).to_bytes(2, "big")
    else:
        made[21] -= 1
    return bytes(made)


# Tags


def tags(frames: list[bytes]) -> None:
    """A batch sorted by what its tags say: each frame is in one place, in order, and changed in nothing but a priority tag."""
    own: dict[int, list[bytes]] = {}
    foreign: dict[int, list[bytes]] = {}
    bad: dict[str, int] = {}
    for one in frames:
        _plain_sort(one, own, foreign, bad)
    found = sort_out([memoryview(one) for one in frames])
    assert {kind: [bytes(one) for one in batch] for kind, batch in found.own.items()} == own
    assert {kind: [bytes(one) for one in batch] for kind, batch in found.foreign.items()} == foreign
    assert dict(found.bad) == bad


def _plain_sort(frame: bytes, own: dict[int, list[bytes]], foreign: dict[int, list[bytes]], bad: dict[str, int]) -> None:
    if len(frame) < 14:
        bad["too_short"] = bad.get("too_short", 0) + 1
        return
    if frame[12:14] == b"\x81\x00" and len(frame) >= 18 and int.from_bytes(frame[14:16], "big") % 4096 == 0:
        frame = frame[:12] + frame[16:]
    if frame[12:14] != b"\x81\x00":
        own.setdefault(int.from_bytes(frame[12:14], "big"), []).append(frame)
        return
    place, tagged = 12, 0
    while frame[place : place + 2] in TAG_TYPES:
        place, tagged = place + 4, tagged + 1
    if tagged > 2 or place + 2 > len(frame):
        bad["bad_tags"] = bad.get("bad_tags", 0) + 1
    else:
        foreign.setdefault(int.from_bytes(frame[place : place + 2], "big"), []).append(frame)


# Link aggregation


class _Cables:
    """Two systems, joined by ports 1 and 2 of both; ports 3 and 4 of the first are the forger's."""

    def __init__(self, fast: bool) -> None:
        self.now = 1000.0
        self.systems = [Aggregator(bytes((2, 0, 0, 0, 0, number)), LacpSettings(fast=fast)) for number in (1, 2)]
        for number in (1, 2, 3, 4):
            self.systems[0].add(number, 0x8000, True, self.now)
        for number in (1, 2):
            self.systems[1].add(number, 0x8000, True, self.now)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            while self._carry():
                pass
            due = min((when for one in self.systems if (when := one.next_timeout()) is not None), default=until)
            if due >= until:
                break
            self.now = max(self.now, due)
            for one in self.systems:
                one.handle_timeout(self.now)
        self.now = until

    def _carry(self) -> bool:
        told = [(there, *one) for here, there in (self.systems, self.systems[::-1]) for one in here.transmit()]
        for there, number, data in told:
            pdu = parse_slow(data)
            assert pdu is not None
            if number < 3:
                there.receive(number, pdu, self.now)
        return bool(told)


def forger(items: list[bytes]) -> None:
    """LACPDUs of a forger on ports of his own: the others carry, and one whose link goes is back in time, whatever he says. Each item: a
    byte of time, his port, and a cable that is pulled and put back; and his PDU."""
    cables = _Cables(bool(items and items[0] and items[0][0] & 0x10))
    ours = cables.systems[0]
    cables.pass_time(5.0)
    assert ours.distributing() == [1, 2]
    back = {1: 0.0, 2: 0.0}
    for item in items:
        head = item[0] if item else 0
        cables.pass_time(_SECONDS[head >> 6])
        pulled = head & 3
        # One at a time: whoever has no other partner left is anybody's.
        if pulled in back and all(cables.now > when for when in back.values()):
            for on in (False, True):
                ours.set_enabled(pulled, on, cables.now)
                cables.systems[1].set_enabled(pulled, on, cables.now)
            back[pulled] = cables.now + 5.0
        try:
            pdu = parse_slow(item[1:])
        except BadFrame:
            pdu = None
        if pdu is not None:
            ours.receive(3 + (head >> 2 & 1), pdu, cables.now)
        cables.pass_time(0.0)
        missing = {number for number, when in back.items() if cables.now > when} - set(ours.distributing())
        assert not missing, missing
        assert set(back) - set(ours.distributing()) <= {number for number, when in back.items() if when}
