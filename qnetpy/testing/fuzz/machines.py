"""Targets with state: whole machines of the product fed by an enemy, item by item. After each run their tables must be within bounds."""

from __future__ import annotations

import random
import struct
from functools import cache

from qnetpy.enrol import wire as enrolment
from qnetpy.enrol.code import make_code
from qnetpy.enrol.joiner import Joiner
from qnetpy.enrol.testing import KEY, PRIVATE, Inn, compute
from qnetpy.identity.authority import NodeIdentity, issue_identity, make_authority
from qnetpy.link import wire
from qnetpy.link.constants import HALF_OPEN_MAX
from qnetpy.link.cookie import ClusterMac
from qnetpy.link.testing import WALL, Caller, Wire, address, agreed
from qnetpy.link.transport.config import TransportConfig
from qnetpy.link.transport.machine import Transport
from resmgr import message
from resmgr.channel import Kernel, Nd
from resmgr.errors import BadMessage
from resmgr.fuse import formats
from resmgr.peer import Peer
from resmgr.testing.fuserig import PID, Rig
from resmgr.testing.memfs import MemFs
from resmgr.testing.memory import MemoryLink
from resmgr.testing.virtual import VirtualDispatch

ITEMS_MAX = 64
FILE_MAX = 1 << 20
"""Bytes of a file in the memory of the rig, which is no disk."""


def transport(packets: list[bytes]) -> None:
    """A peer with good keys that says whatever it likes. An item's first byte: how much time passes, and whether we answer."""
    machine = Transport(TransportConfig(), 0.0)
    machine.add_path(0, 1200, 0.0)
    machine.send(1, [b"hello" * 100], 10, 0.0)
    now = 0.0
    for number, packet in enumerate(packets[:ITEMS_MAX]):
        how, plain = packet[:1], packet[1:]
        step = how[0] if how else 0
        now += (step & 0x7F) / 100
        if plain:
            machine.receive(0, [(number, plain)], now)
        machine.events()
        if machine.closed:
            return
        when = machine.next_timeout()
        if when is not None and when <= now:
            machine.handle_timeout(now)
        if step & 0x80:
            machine.transmit(0, now, 16)
    told = machine.statistics()
    assert told.incomplete <= 64 << 20


def peer(parts: list[bytes]) -> None:
    """Messages of another node's kernel to ours, in any order."""
    _serve(parts)


def manager(parts: list[bytes]) -> None:
    """Requests of another node's client to a file manager: each item is the message of a SEND."""
    sends = []
    for number, part in enumerate(parts[:ITEMS_MAX]):
        block = message.pack_block(message.ConnectBlock(0, 1, 1, 77, 1000, 1000)) if number == 0 else b""
        head = message.SEND_HEADER.pack(message.SEND, message.CONNECT if number == 0 else 0, 10, 0, number + 1, 1, 65536, len(part))
        sends.append(head + block + part)
    _serve(sends)


def _serve(parts: list[bytes]) -> None:
    world = VirtualDispatch(1)
    here = world.node("here")
    kernel = Kernel(here, "here")
    fs = MemFs(kernel)
    fs.size_max = FILE_MAX
    link = MemoryLink(here, world.node("there"), world.random("link"))
    ours = Peer(kernel, link.left, nd=Nd(9), node="there", roles=frozenset({"user"}))
    target = fs.target
    for part in parts[:ITEMS_MAX]:
        data = bytearray(part)
        # The channel's address, which no coverage would find.
        if (
            len(data) > message.SEND_HEADER.size + message.BLOCK.size
            and data[0] in (message.SEND, message.PULSE)
            and data[1] == message.CONNECT
        ):
            head = message.SEND_HEADER if data[0] == message.SEND else message.PULSE_HEADER
            try:
                fields = list(message.BLOCK.unpack_from(data, head.size))
                fields[3], fields[4] = target.pid, target.chid
                message.BLOCK.pack_into(data, head.size, *fields)
            except struct.error:
                pass
        ours.receive(bytes(data), 0, 10)
        world.run_for(0.02)
    world.run_for(1.0)
    told = ours.statistics()
    assert told.incoming <= ITEMS_MAX
    ours.down(112)
    world.run_for(1.0)
    told = ours.statistics()
    assert (told.outgoing, told.incoming, told.connections_in, told.held) == (0, 0, 0, 0)


def fuse(requests: list[bytes]) -> None:
    """Requests on /dev/fuse. An item: opcode (1), node (1), body; the header is made here, since the kernel makes it."""
    rig = Rig()
    rig.fs.size_max = FILE_MAX
    rig.raw(
        formats.IN_HEADER.pack(104, formats.Opcode.INIT, 1, 0, 0, 0, 0, 0, 0)
        + struct.pack("=IIIII", 7, 40, 131072, 0xFFFFFFFF, 0)
        + bytes(44)
    )
    unique = 2
    for request in requests[:ITEMS_MAX]:
        if len(request) < 2:
            rig.raw(request)
            continue
        opcode, node, body = request[0], request[1], request[2:]
        rig.raw(formats.IN_HEADER.pack(40 + len(body), opcode, unique, node, 0, 0, PID, 0, 0) + body)
        unique += 2
        rig.run(0.001)


@cache
def _identities() -> tuple[NodeIdentity, ...]:
    authority = make_authority("garden", WALL - 86400.0, random=random.Random(1).randbytes)
    return tuple(issue_identity(authority, name, [], WALL) for name in ("a", "b"))


def shaking(steps: list[bytes]) -> None:
    """Two nodes and an enemy who has the cluster secret (a revoked node), so that mac1 is no wall: the handshake machines themselves.

    A step: what (1), which frame of those seen (1), then bytes: exclusive-or into it from an offset (2) on. What: 0 let time pass, 1 send
    the frame again, 2 changed with a good mac1, 3 changed as it is, 4 from another address, 5 to the other node, 6 cut short, 7 its own.
    """
    air = Wire(7)
    names = _identities()
    places = address(1), address(2)
    one, two = (Caller(air, identity, place) for identity, place in zip(names, places, strict=True))
    enemy = address(9)
    mac = ClusterMac(names[0].secret)
    one.want(places[1], "b")
    air.run(0.0101)
    for step in steps[:ITEMS_MAX]:
        if len(step) < 2:
            air.run(air.now + 0.3)
            continue
        what, which, rest = step[0] & 7, step[1], step[2:]
        if what == 0:
            air.run(air.now + which / 50)
            continue
        _, source, destination, frame = air.log[which % len(air.log)]
        if what in (2, 3):
            frame = _changed(frame, rest, mac if what == 2 else None)
        elif what == 4:
            source = enemy
        elif what == 5:
            source, destination = destination, source
        elif what == 6:
            frame = frame[: which * 4]
        elif what == 7:
            frame, source = bytes(rest), enemy
        air.inject(source, destination, frame)
        air.run(air.now + 0.0003)
    for caller in (one, two):
        assert caller.machine.half_open <= HALF_OPEN_MAX
        assert set(caller.links) <= {"a", "b"} - {caller.name}
        assert all(link.static_key in [identity.certificate.static_key for identity in names] for link in caller.links.values())
    # Whatever was done: when it ends, the two find each other.
    end = air.now + 45.0
    while not agreed(one, two):
        assert air.now < end, "no session after the attack ended"
        air.run(air.now + 3.0)


def _changed(frame: bytes, mask: bytes, mac: ClusterMac | None) -> bytes:
    data = bytearray(frame)
    at = int.from_bytes(mask[:2], "big") % max(1, len(data))
    for place, value in enumerate(mask[2:18], at):
        if place < len(data):
            data[place] ^= value
    if mac is not None and data[0] != wire.DATA:
        try:
            parsed, _, macs = wire.parse_handshake(data)
        except BadMessage:
            return bytes(data)
        body = parsed.pack()
        return body + mac.make(body) + macs[16:]
    return bytes(data)


@cache
def _linked() -> tuple[Caller, list[bytes]]:
    """A node with a session, and the DATA frames that came to it. Made once: nothing that a forger sends may change it."""
    air = Wire(3)
    one, two = (Caller(air, identity, address(number)) for number, identity in enumerate(_identities(), 1))
    one.want(address(2), "b")
    air.run(1.0)
    assert agreed(one, two)
    return one, [frame for _, source, _, frame in air.log if frame[0] == wire.DATA and source == address(2)]


def link(steps: list[bytes]) -> None:
    """Frames at a node with an established session: raw bytes, or a real DATA frame changed. Nothing false may come out of it."""
    one, data = _linked()
    before = len(one.opened)
    for step in steps[:ITEMS_MAX]:
        frame = step if not step or step[0] & 1 else _changed(data[-1], step, None)
        one.receive(frame.ljust(46, b"\0"), address(2))
    assert len(one.opened) == before, "a frame that nobody sent was taken"


def joining(steps: list[bytes]) -> None:
    """A machine that joins by a code and the node that invited it, with an enemy on the wire who does not know the code.

    A step: what (1), then bytes. What: 0 the next piece passes as it is, 1 it passes with bytes exclusive-or into it from an offset (2) on,
    2 it is lost, 3 it comes twice, 4 the enemy's own bytes to the inviter, 5 to the joiner, 6 his own frame of a type (1) to the inviter,
    7 to the joiner. With the highest bit in the first step, the joiner has guessed the code.
    """
    inn = Inn()
    chance = random.Random(1)
    right = inn.invite()
    knows = not steps or not steps[0] or steps[0][0] < 0x80
    code = right if knows else make_code(chance.randbytes, right.public)
    exchange = inn.exchange()
    joiner = Joiner(code, PRIVATE, "joiner", chance.randbytes)
    touched = False
    for step in [*steps[:ITEMS_MAX], *[b"\0"] * 8]:
        what, rest = (step[0] & 7, step[1:]) if step else (0, b"")
        touched = touched or what != 0
        if what >= 4:
            own = rest if what < 6 or not rest else enrolment.HEADER.pack((rest[0] % 12) << 24 | len(rest) - 1) + rest[1:]
            if what & 1:
                joiner.receive(own)
            else:
                exchange.receive(own, 0.0)
        else:
            for queue, take in ((joiner.out, lambda data: exchange.receive(data, 0.0)), (exchange.out, joiner.receive)):
                if queue:
                    piece = queue.pop(0)
                    for _ in range((1, 1, 0, 2)[what]):
                        take(_changed(piece, rest, None) if what == 1 else piece)
        compute(exchange)
    assert inn.counters["exchange_failed"] == 0
    # Whoever got a certificate is the one with the code, and what he was told is what was granted.
    assert list(inn.keys) == [KEY] * inn.issued
    if isinstance(joiner.outcome, enrolment.Grant):
        assert knows
        assert (joiner.outcome.secret, inn.issued) == (inn.authority.secret, 1)
    else:
        assert touched or not knows
