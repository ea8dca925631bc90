"""Routed flows between namespaces: a small router marks what it has routed, and the engine passes the rest on."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator

import attrs
import pytest
import trio

from resmgr.errors import Misuse
from resmgr.system import System
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.frame import Frame
from stack.l2.engine import RoutedFlow
from stack.l2.forward import fastpath
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import kinds
from stack.l2.forward.packets import flow_of, pass_on
from stack.wire.checksum import checksum, ones_sum
from tests.stack.l2.forward.conftest import Host, Town, settle, station

pytestmark = pytest.mark.priv
IPV4, IPV6 = 0x0800, 0x86DD


class Router:
    """Routes 10.9.N.0/24 and fd00:N::/64 to port N, whose only neighbour is host N. Marks every flow that it passes on."""

    def __init__(self, stack: Stack, ports: list[Interface], engine: FastPath) -> None:
        self.stack, self.ports, self.engine = stack, ports, engine
        self.seen: list[bytes] = []
        self.marks = True
        self.registrations = [stack.register_ethertype(kind, self.receive) for kind in (IPV4, IPV6)]
        for port in ports:
            engine.add(port)

    def receive(self, interface: Interface, frames: list[Frame]) -> None:
        for one in frames:
            frame = bytearray(one)
            if frame[:6] != interface.mac:
                continue
            self.seen.append(bytes(frame))
            key = flow_of(memoryview(frame), 0, len(frame))
            if key is None:
                continue  # for an IP layer, which this is not
            number = key[1][2] if len(key[1]) == 4 else key[1][3]
            if number >= len(self.ports) or self.ports[number] is interface:
                continue
            output = self.ports[number]
            pass_on(memoryview(frame), 0, station(number) + output.mac)
            self.stack.output(output, [frame])
            if self.marks:
                self.engine.route(RoutedFlow(interface, *key, output, station(number)))


@attrs.define
class Routed:
    town: Town
    stack: Stack
    ports: list[Interface]
    engine: FastPath
    router: Router

    def carried(self) -> int:
        return self.engine.statistics().frames


@pytest.fixture(params=["kernel", "kernel-native", "threads"])
async def routed(request: pytest.FixtureRequest, town: Town) -> AsyncIterator[Routed]:
    stack = Stack(System(town.dispatch, "n"), bytes)
    with town.middle.entered():
        loaded = [stack.load("packet", f"ifname=p{number}").interface for number in range(2)]
    ports = [port for port in loaded if port is not None]
    for number, host in enumerate(town.hosts[:2]):
        if request.param == "kernel-native":
            host.set_feature("gro", True)
            host.set_feature("tx", False)  # a partial checksum is lost in native mode: docs/stack/forwarding.md
        ip, name, mac = host.namespace.ip, f"h{number}", ports[number].mac.hex(":")
        for own, gateway, every in (
            (f"10.9.{number}.1/24", f"10.9.{number}.254", "0.0.0.0/0"),
            (f"fd00:{number}::1/64", f"fd00:{number}::ff", "::/0"),
        ):
            ip("addr", "add", own, "dev", name, *(("nodad",) if ":" in own else ()))
            ip("neigh", "add", gateway, "lladdr", mac, "dev", name)
            ip("route", "add", every, "via", gateway)
    engine = FastPath(stack, request.param, kinds(town.dispatch))
    made = Routed(town, stack, ports, engine, Router(stack, ports, engine))
    assert await settle(lambda: all(port.how and not port.off for port in engine.statistics().ports.values())), engine.statistics()
    yield made
    engine.close()
    stack.close()
    assert town.dispatch.statistics().descriptors == 0


def udp_pair(routed: Routed, six: bool) -> tuple[socket.socket, socket.socket, tuple[str, int]]:
    family = socket.AF_INET6 if six else socket.AF_INET
    made = []
    for host in routed.town.hosts[:2]:
        with host.namespace.entered():
            made.append(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    target = ("fd00:1::1" if six else "10.9.1.1", 7000)
    made[1].bind(target)
    return made[0], made[1], target


def drain(sock: socket.socket, into: list[bytes]) -> list[bytes]:
    while True:
        try:
            into.append(sock.recv(70000))
        except BlockingIOError:
            return into


@pytest.mark.parametrize("six", [False, True])
async def test_datagrams_are_passed_on_in_order_and_whole(routed: Routed, six: bool) -> None:
    near, far, target = udp_pair(routed, six)
    got: list[bytes] = []
    sent = [random.Random(n).randbytes(n % 1400 + 4) for n in range(300)]
    with near, far:
        for number, data in enumerate(sent):
            near.sendto(data, target)
            if number % 20 == 0:
                assert await settle(lambda number=number: len(drain(far, got)) > number)  # type: ignore[misc]  # a lambda with a default
        assert await settle(lambda: len(drain(far, got)) >= 300), (len(got), routed.engine.statistics())
    assert got == sent
    assert len(routed.router.seen) < 30
    [flow] = routed.engine.flows()
    assert flow.frames >= 270
    assert flow.idle < 3
    assert flow.flow.source == ipaddress.ip_address("fd00:0::1" if six else "10.9.0.1").packed
    assert routed.engine.statistics().flows == 1


@pytest.mark.parametrize("runs", [False, True])
async def test_a_stream_of_the_kernels_own_tcp(routed: Routed, runs: bool) -> None:
    for host in routed.town.hosts[:2]:
        if routed.engine.name != "kernel" or routed.engine.statistics().ports["p0"].how == "xdp generic":
            # Without checksums by the card, as in native mode, there is no such feature.
            host.set_feature("tso", runs)
        host.set_feature("gso", runs)
    listening = "import hashlib, socket; s = socket.create_server(('10.9.1.1', 7)); print(flush=True); c = s.accept()[0]\n"
    listening += "h = hashlib.sha256()\nwhile d := c.recv(65536): h.update(d)\nc.close(); print(h.hexdigest())"
    calling = "import random, socket, hashlib; s = socket.create_connection(('10.9.1.1', 7), 5)\n"
    calling += "d = random.Random(1).randbytes(3000000); s.sendall(d); s.close(); print(hashlib.sha256(d).hexdigest())"

    def talk() -> tuple[str, str]:
        with routed.town.hosts[1].namespace.entered():
            server = subprocess.Popen([sys.executable, "-c", listening], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        server.stdout.readline()
        with routed.town.hosts[0].namespace.entered():
            client = subprocess.run([sys.executable, "-c", calling], check=True, timeout=20, stdout=subprocess.PIPE, text=True)
        return client.stdout.strip(), server.communicate(timeout=20)[0].strip()

    sent, got = await trio.to_thread.run_sync(talk)
    assert sent == got
    port = routed.engine.statistics().ports["p0"]
    if port.how != "xdp generic" or not runs:
        assert port.in_bytes > 2_900_000
        assert (port.in_frames < 1000) is (runs and port.how != "xdp native"), "no runs without partial checksums"
    else:
        assert port.up["long"] > 3, "XDP cannot carry runs: the router does"
        assert "foreign" not in port.up, "a run is a whole packet, and nothing of the same flow may overtake it"
        assert port.in_bytes < 3_000_000


def packet4(
    payload: bytes = bytes(30), ttl: int = 9, fragment: int = 0, options: bytes = b"", wrong: int = 0, length: int | None = None
) -> bytes:
    size = 20 + len(options)
    total = size + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, total, 1, fragment, ttl, 17, 0) + bytes((10, 9, 0, 1, 10, 9, 1, 1)) + options
    return head[:10] + (checksum(head) + wrong & 0xFFFF).to_bytes(2, "big") + head[12:] + payload


def packet6(payload: bytes = bytes(30), hops: int = 9, following: int = 17, length: int | None = None, version: int = 6) -> bytes:
    head = struct.pack("!B3xHBB", version << 4, len(payload) if length is None else length, following, hops)
    return head + ipaddress.ip_address("fd00:0::1").packed + ipaddress.ip_address("fd00:1::1").packed + payload


class Raw(Host):
    """Hears all."""

    def hear(self) -> list[bytes]:
        while True:
            try:
                one = self._sock.recv(70000)
            except BlockingIOError:
                return self.frames
            if one[12:14] in (b"\x08\0", b"\x86\xdd") and one[6:12] != station(1):
                self.frames.append(one)


def by_type(frames: list[bytes]) -> list[bytes]:
    """A batch is sorted by ethertype before handlers get it; in each the order is kept."""
    return sorted(frames, key=lambda one: one[12:14])


def marked(routed: Routed) -> None:
    for version, packet in ((IPV4, packet4()), (IPV6, packet6())):
        key = flow_of(memoryview(bytes(12) + version.to_bytes(2, "big") + packet), 0, 14 + len(packet))
        assert key is not None
        assert routed.engine.route(RoutedFlow(routed.ports[0], *key, routed.ports[1], station(1)))
    routed.router.marks = False


async def test_what_leaves_has_a_lower_ttl_and_a_right_checksum(routed: Routed) -> None:
    marked(routed)
    far = Raw(routed.town.hosts[1].namespace, "h1")
    own = routed.ports[0].mac + station(0)
    try:
        # Every TTL, and identifications around the carry of the checksum.
        packets = [packet4(ttl=ttl) for ttl in (2, 3, 64, 128, 255)] + [packet4(length=50, payload=bytes(40))]
        sixes = [packet6(hops=hops) for hops in (2, 64, 255)]
        routed.town.hosts[0].send(*(own + b"\x08\0" + one for one in packets), *(own + b"\x86\xdd" + one for one in sixes))
        assert await settle(lambda: len(far.hear()) >= 9), routed.engine.statistics()
        assert routed.router.seen == []
        for before, after in zip((*packets, *sixes), far.frames, strict=True):
            assert after[:12] == station(1) + routed.ports[1].mac
            place = 8 if before[0] == 0x45 else 7
            assert after[14 + place] == before[place] - 1
            assert before[0] != 0x45 or ones_sum(after[14:34]) == 0xFFFF
            body = bytearray(after[14:])
            body[place] += 1
            if before[0] == 0x45:
                body[10:12] = before[10:12]
            assert body[: len(before)] == before
    finally:
        far.close()


async def test_what_the_ip_layer_must_see_goes_up_as_it_is(routed: Routed) -> None:
    marked(routed)
    own = routed.ports[0].mac + station(0)
    foreign4 = [
        packet4(ttl=1),
        packet4(ttl=0),
        packet4(fragment=0x2000),
        packet4(fragment=0x0001),
        packet4(options=b"\x01\x01\x01\x00"),
        packet4(wrong=1),
        packet4(length=19),
        packet4(length=1000),
        packet4()[:19],
    ]
    foreign6 = [
        packet6(hops=1),
        packet6(hops=0),
        packet6(length=1000),
        packet6(version=4),
        packet6()[:39],
        *(packet6(following=header) for header in (0, 43, 44, 51, 60)),
    ]
    frames = [own + b"\x08\0" + one for one in foreign4] + [own + b"\x86\xdd" + one for one in foreign6]
    other = bytearray(own + b"\x08\0" + packet4())
    other[33] = 7
    other[24:26] = bytes(2)
    other[24:26] = checksum(other[14:34]).to_bytes(2, "big")
    frames.append(bytes(other))
    routed.town.hosts[0].send(*frames)
    assert await settle(lambda: len(routed.router.seen) >= len(frames)), (len(routed.router.seen), routed.engine.statistics())
    assert by_type(routed.router.seen) == by_type(frames)
    port = routed.engine.statistics().ports["p0"]
    assert port.in_frames == 0
    assert port.up["foreign"] == len(frames) - 1
    assert port.up["flow"] == 1


async def test_noise_goes_up_or_is_passed_on_right(routed: Routed) -> None:
    """Bytes of chance behind our address, and packets with some of them changed: nothing is lost and nothing wrong leaves."""
    marked(routed)
    chance = random.Random(11)
    own = routed.ports[0].mac + station(0)
    frames = []
    for number in range(400):
        kind, packet = ((b"\x08\0", packet4()), (b"\x86\xdd", packet6()))[number % 2]
        changed = bytearray(packet)
        for _ in range(chance.randrange(3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        frames.append(
            own + kind + bytes(changed[: chance.randrange(1, len(changed) + 1)]) if number % 5 == 0 else own + kind + bytes(changed)
        )
    expected = {}
    for one in frames:
        key = flow_of(memoryview(one), 0, len(one))
        expected[one] = key is not None and any(key == (f.flow.source, f.flow.destination) for f in routed.engine.flows())
    go = sum(expected[one] for one in frames)
    for start in range(0, 400, 50):
        routed.town.hosts[0].send(*frames[start : start + 50])
        await trio.sleep(0.01)
    assert await settle(lambda: routed.carried() + sum(one[6:12] == station(0) for one in routed.router.seen) >= 400), (
        go,
        routed.engine.statistics(),
    )
    port = routed.engine.statistics().ports["p0"]
    # Worker threads hand up what would overtake.
    assert routed.carried() + port.up.get("order", 0) == go > 50
    seen = [one for one in routed.router.seen if one[6:12] == station(0)]
    assert by_type([one for one in seen if not expected[one]]) == by_type([one for one in frames if not expected[one]])
    assert len(seen) == 400 - routed.carried()


async def test_a_smaller_mtu_behind_is_the_ip_layers(routed: Routed) -> None:
    routed.town.middle.ip("link", "set", "p1", "mtu", "1300")
    assert await settle(lambda: routed.ports[1].mtu == 1300 and not routed.engine.statistics().ports["p1"].off)
    marked(routed)
    own = routed.ports[0].mac + station(0)
    for size, up in ((1280, 0), (1281, 1)):
        routed.town.hosts[0].send(own + b"\x08\0" + packet4(bytes(size)))
        assert await settle(lambda up=up: routed.carried() + len(routed.router.seen) >= 1 + up)  # type: ignore[misc]  # a default
        assert len(routed.router.seen) == up
    assert routed.engine.statistics().ports["p0"].up["long"] == 1


async def test_flows_end(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "FLOW_SECONDS", 1.0)
    marked(routed)
    one, two = routed.engine.flows()
    routed.engine.unroute(one.flow.interface, one.flow.source, one.flow.destination)
    assert routed.engine.flows()[0].flow == two.flow
    routed.engine.off(routed.ports[1], "a test")
    assert not routed.engine.route(one.flow)
    routed.engine.on(routed.ports[1], "a test")
    assert routed.engine.route(one.flow)
    routed.town.middle.ip("link", "set", "p1", "address", "02:00:00:00:77:01")
    assert await settle(lambda: routed.engine.flows() == [])
    assert await settle(lambda: not routed.engine.statistics().ports["p1"].off)
    assert routed.engine.route(one.flow)
    own = routed.ports[0].mac + station(0)
    routed.town.hosts[0].send(own + b"\x08\0" + packet4())
    assert await settle(lambda: routed.carried() == 1)
    assert await settle(lambda: not routed.engine.flows())
    routed.town.hosts[0].send(own + b"\x08\0" + packet4())
    assert await settle(lambda: len(routed.router.seen) == 1)


async def test_the_table_has_a_bound(routed: Routed) -> None:
    def flow(number: int) -> RoutedFlow:
        return RoutedFlow(routed.ports[0], number.to_bytes(4, "big"), bytes((10, 9, 1, 1)), routed.ports[1], station(1))

    added = [routed.engine.route(flow(number)) for number in range(300)]
    assert added == [True] * 256 + [False] * 44
    assert (routed.engine.statistics().flows, routed.engine.statistics().flows_refused) == (256, 44)


async def test_flows_that_cannot_be(routed: Routed) -> None:
    a, b = routed.ports
    four, other = bytes((10, 9, 0, 1)), bytes((10, 9, 1, 1))
    for wrong in (
        RoutedFlow(a, four, other, a, station(1)),
        RoutedFlow(a, four, other + bytes(12), b, station(1)),
        RoutedFlow(a, four, other, b, b"\xff" * 6),
        RoutedFlow(a, four, bytes((224, 0, 0, 5)), b, station(1)),
    ):
        with pytest.raises(Misuse):
            routed.engine.route(wrong)
