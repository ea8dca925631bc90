"""Three hosts around a bridge, each in a namespace of its own: h0, h1, h2 on cables to p0, p1, p2, the ports of one stack.

The bridge here is the smallest that drives an engine: it learns, floods, and tells the engine. It counts what came by it.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import attrs
import pytest

from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from stack.core.hooks import ORDER_BRIDGE, Point
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.frame import Frame
from stack.l2.engine import Engine
from stack.l2.forward.fastpath import FastPath
from stack.l2.forward.kinds import kinds
from stack.testing.namespace import Namespace
from stack.testing.pair import settle as settle

TYPE = 0x88B5
HOSTS = 3


def station(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 1, number))


def frame(destination: int, source: int, payload: bytes = b"", tag: bytes = b"") -> bytes:
    return station(destination) + station(source) + tag + TYPE.to_bytes(2, "big") + payload


class Host:
    """A packet socket at the far end of a cable: hears all of our ethertype, tagged or not."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        with namespace.entered():
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
            self._sock.setsockopt(263, 23, 1)
            self._sock.setsockopt(263, 8, 1)  # PACKET_AUXDATA: tags
            self._sock.bind((name, 3))
        self.namespace, self.name = namespace, name
        self.frames: list[bytes] = []

    def set_feature(self, feature: str, on: bool) -> None:
        """`gro` gives the end of a veth NAPI, without which bare frames that XDP redirects to it are lost."""
        with self.namespace.entered():
            subprocess.run(["ethtool", "-K", self.name, feature, "on" if on else "off"], check=True)

    def send(self, *frames: bytes) -> None:
        for one in frames:
            self._sock.send(one)

    def hear(self) -> list[bytes]:
        """All that has come so far, with tags back in their place."""
        while True:
            try:
                data, ancillary, *_ = self._sock.recvmsg(70000, 256)
            except BlockingIOError:
                return self.frames
            for level, kind, body in ancillary:
                if (level, kind) == (263, 8) and int.from_bytes(body[:4], "little") & 0x10:
                    data = data[:12] + b"\x81\0" + int.from_bytes(body[16:18], "little").to_bytes(2, "big") + data[12:]
            if data[12:14] == b"\x88\xb5" or data[12:18:4] == b"\x81\x88" or data[16:18] == b"\x88\xb5":
                self.frames.append(data)

    def close(self) -> None:
        self._sock.close()


class SmallBridge:
    """See the head of this file."""

    def __init__(self, stack: Stack, ports: list[Interface], engine: Engine) -> None:
        self.stack, self.ports, self.engine = stack, ports, engine
        self.known: dict[bytes, Interface] = {}
        self.seen = 0
        self.registrations = [stack.add_hook(Point.IN, self._hook, order=ORDER_BRIDGE, name="bridge0", everything=True, counts=True)]
        for port in ports:
            self.registrations.append(stack.promiscuous(port, "bridge0"))
            engine.add(port)

    def _hook(self, interface: Interface, frames: list[Frame]) -> list[Frame]:
        if interface not in self.ports:
            return frames
        up = []
        for one in frames:
            destination, source = bytes(one[:6]), bytes(one[6:12])
            self.seen += one[12:14] == b"\x88\xb5"
            self.known[source] = interface
            self.engine.learned(source, interface)
            output = self.known.get(destination)
            if destination == interface.mac:
                up.append(one)
            elif output is not None:
                if output is not interface:
                    self.stack.output(output, [one])
            else:
                for port in self.ports:
                    if port is not interface:
                        self.stack.output(port, [one])
        return up

    def close(self) -> None:
        self.engine.close()
        for registration in self.registrations:
            registration.revoke()


@attrs.define
class Town:
    """`middle` is where the ports are."""

    hosts: list[Host]
    middle: Namespace
    dispatch: TrioDispatch

    @property
    def all_heard(self) -> list[int]:
        return [len(host.hear()) for host in self.hosts]


@attrs.define
class Bridged:
    town: Town
    stack: Stack
    ports: list[Interface]
    engine: FastPath
    bridge: SmallBridge

    @property
    def hosts(self) -> list[Host]:
        return self.town.hosts

    async def meet(self) -> None:
        """Every host says something, so that all stations are known; what they heard of it is forgotten."""
        for number, host in enumerate(self.hosts):
            host.send(frame(0x99, number, b"hello"))
        assert await settle(lambda: len(self.bridge.known) >= HOSTS and all(count >= HOSTS - 1 for count in self.town.all_heard))
        for host in self.hosts:
            host.frames.clear()

    async def heard(self, number: int, count: int) -> list[bytes]:
        assert await settle(lambda: len(self.hosts[number].hear()) >= count), (len(self.hosts[number].frames), self.engine.statistics())
        return self.hosts[number].hear()


@pytest.fixture
def places() -> Iterator[tuple[list[Namespace], Namespace]]:
    with ExitStack() as stack:
        made = [Namespace.make() for _ in range(HOSTS + 1)]
        for one in made:
            stack.callback(one.close)
        *far, middle = made
        for number, namespace in enumerate(far):
            middle.ip("link", "add", f"p{number}", "type", "veth", "peer", "name", f"h{number}", "address", station(number).hex(":"))
            middle.move(f"h{number}", namespace)
            # Or the kernel's IPv6 says something of its own with the stations' addresses.
            middle.ip("link", "set", f"p{number}", "addrgenmode", "none")
            namespace.ip("link", "set", f"h{number}", "addrgenmode", "none")
            middle.ip("link", "set", f"p{number}", "up")
            namespace.ip("link", "set", f"h{number}", "up")
        yield far, middle


@pytest.fixture
async def town(places: tuple[list[Namespace], Namespace]) -> AsyncIterator[Town]:
    far, middle = places
    async with open_dispatch() as dispatch:
        hosts = [Host(namespace, f"h{number}") for number, namespace in enumerate(far)]
        yield Town(hosts, middle, dispatch)
        for host in hosts:
            host.close()


@pytest.fixture(params=["kernel", "kernel-native", "threads"])
async def bridged(request: pytest.FixtureRequest, town: Town) -> AsyncIterator[Bridged]:
    if request.param == "kernel-native":
        for host in town.hosts:
            host.set_feature("gro", True)
    stack = Stack(System(town.dispatch, "n"), bytes)
    ports = []
    with town.middle.entered():
        for number in range(HOSTS):
            interface = stack.load("packet", f"ifname=p{number}").interface
            assert interface is not None
            ports.append(interface)
    engine = FastPath(stack, request.param, kinds(town.dispatch))
    made = Bridged(town, stack, ports, engine, SmallBridge(stack, ports, engine))
    assert await settle(lambda: all(port.how and not port.off for port in engine.statistics().ports.values())), engine.statistics()
    hows = {port.how for port in engine.statistics().ports.values()}
    if request.param != "threads":
        assert hows == {"xdp native" if request.param == "kernel-native" else "xdp generic"}
    await made.meet()
    yield made
    made.bridge.close()
    stack.close()
    assert town.dispatch.statistics().descriptors == 0
