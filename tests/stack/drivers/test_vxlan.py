"""The VXLAN driver: the contract between two of ours, and an Ethernet that it shares with Linux's own VXLAN device."""

from __future__ import annotations

import errno
import random
import socket
from typing import Any

import pytest
import trio

from qnetpy.cluster.netlink import offloads_off
from resmgr.runner import TrioDispatch
from resmgr.system import System
from stack.core.driver import Driver
from stack.core.errors import ModuleError, OptionError
from stack.core.options import parse_options
from stack.core.stack import Stack
from stack.drivers.tap import TapDriver, TapOptions
from stack.drivers.vxlan import VxlanDriver, VxlanOptions
from stack.drivers.vxlan_tunnel.stations import AGE, Stations
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, check_driver, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import Pair, settle
from stack.wire import vxlan
from stack.wire.ethernet import BROADCAST

A, B = b"\2\0\0\0\1\1", b"\2\0\0\0\1\2"
NEAR, FAR = "10.9.0.1", "10.9.0.2"


@pytest.fixture
def underlay(veth: Veth) -> Veth:
    for namespace, name, address in ((veth.a, "va", NEAR), (veth.b, "vb", FAR)):
        namespace.ip("address", "add", f"{address}/24", "dev", name)
        six = f"fd00::{address[-1]}"
        namespace.ip("address", "add", f"{six}/64", "dev", name, "nodad")
        namespace.ip("link", "set", "lo", "up")
    return veth


def made(dispatch: TrioDispatch, namespace: Namespace, mac: bytes, **options: Any) -> VxlanDriver:
    with namespace.entered():
        return VxlanDriver(dispatch, VxlanOptions(42, **options), mac)


@pytest.mark.priv
@pytest.mark.parametrize("ends", [(NEAR, FAR), ("fd00::1", "fd00::2"), ("239.1.1.1", "239.1.1.1"), ("ff05::99", "ff05::99")])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract(dispatch: TrioDispatch, underlay: Veth, ends: tuple[str, str], wrapped: bool) -> None:
    if ends[0] == ends[1]:
        a: Driver = made(dispatch, underlay.a, A, group=ends[0], dev="va")
        b: Driver = made(dispatch, underlay.b, B, group=ends[0], dev="vb")
    else:
        a, b = made(dispatch, underlay.a, A, remote=(ends[1],)), made(dispatch, underlay.b, B, remote=(ends[0],))
    assert a.mtu == (1430 if ":" in ends[0] else 1450)
    if wrapped:
        outer = [FaultDriver(dispatch, FaultOptions()) for _ in range(2)]
        for wrapper, driver in zip(outer, (a, b), strict=True):
            wrapper.around(driver)
        a, b = outer
    await check_driver(Pair(a, b))


class Heard:
    """A driver in namespace a that has started, and a plain UDP socket at the other end."""

    def __init__(self, dispatch: TrioDispatch, underlay: Veth, **options: Any) -> None:
        self.driver = made(dispatch, underlay.a, A, **{"remote": (FAR,), **options})
        self.port = RecordingPort()
        self.driver.start(self.port)
        self.driver.accept(frozenset((TYPE,)))
        with underlay.b.entered():
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((FAR, 4789))
        self.sock.settimeout(5)

    def send(self, datagram: bytes) -> None:
        self.sock.sendto(datagram, (NEAR, 4789))


@pytest.mark.priv
async def test_what_is_not_for_us_is_counted(dispatch: TrioDispatch, underlay: Veth) -> None:
    heard = Heard(dispatch, underlay)
    good = frame(A, B, b"good")
    for datagram in (
        vxlan.pack(43) + good,
        vxlan.pack(42)[:5],
        bytes(8) + good,
        vxlan.pack(42) + good[:10],
        vxlan.pack(42) + frame(A, B, bytes(2000)),
        vxlan.pack(42) + frame(A, A, b"own"),
        vxlan.pack(42) + good,
    ):
        heard.send(datagram)
    assert await settle(lambda: bool(heard.port.frames))
    assert heard.port.frames == [good]
    assert heard.port.drops == {"rx_other_network": 1, "rx_malformed": 3, "rx_too_long": 1, "rx_own": 1}
    underlay.b.ip("address", "add", "10.9.0.3/24", "dev", "vb")
    with underlay.b.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("10.9.0.3", 0))
        stranger.sendto(vxlan.pack(42) + good, (NEAR, 4789))
    assert await settle(lambda: heard.port.drops.get("rx_stranger") == 1)
    heard.driver.detach()
    heard.sock.close()


@pytest.mark.priv
async def test_what_is_known_goes_to_one_end_and_what_is_not_to_all(dispatch: TrioDispatch, underlay: Veth) -> None:
    underlay.b.ip("address", "add", "10.9.0.3/24", "dev", "vb")
    heard = Heard(dispatch, underlay, remote=(FAR, "10.9.0.3"))
    with underlay.b.entered():
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("10.9.0.3", 4789))
    other.settimeout(5)
    to_b, to_all = frame(B, A, b"to b"), frame(BROADCAST, A, b"to all")
    assert await settle(lambda: heard.driver.up)
    heard.driver.transmit([to_b, to_all])
    for sock in (heard.sock, other):
        assert [sock.recv(2000)[8:] for _ in range(2)] == [to_b, to_all]
    heard.send(vxlan.pack(42) + frame(A, B, b"here I am"))
    assert await settle(lambda: bool(heard.port.frames))
    heard.driver.transmit([to_b, to_all])
    assert [heard.sock.recv(2000) for _ in range(2)] == [vxlan.pack(42) + to_b, vxlan.pack(42) + to_all]
    assert other.recv(2000)[8:] == to_all
    assert heard.driver.info()["stations"] == 1
    heard.driver.detach()
    heard.sock.close()
    other.close()


@pytest.mark.priv
async def test_copies_that_are_lost_are_counted_though_others_went_out(dispatch: TrioDispatch, underlay: Veth) -> None:
    heard = Heard(dispatch, underlay, remote=(FAR, "192.0.2.9"))
    assert await settle(lambda: heard.driver.up)
    heard.driver.transmit([frame(BROADCAST, A, b"to all")] * 3)
    assert heard.sock.recv(2000)
    assert heard.port.drops == {"tx_partly": 3}
    heard.driver.detach()
    heard.sock.close()


@pytest.mark.priv
async def test_networks_share_a_port(dispatch: TrioDispatch, underlay: Veth) -> None:
    """Two networks of a stack, one of them behind wrappers; either may go first, and the port is free when both are gone."""
    stacks = [Stack(System(dispatch, "n"), random.Random(number).randbytes) for number in range(2)]
    loaded = []
    for stack, namespace, far in zip(stacks, (underlay.a, underlay.b), (FAR, NEAR), strict=True):
        with namespace.entered():
            loaded.append([stack.load("vxlan", f"vni={vni},remote={far}", wrap=[("rate", "tx=1G")]) for vni in (42, 43)])
            with pytest.raises(ModuleError, match="network 43 is there already"):
                stack.load("vxlan", f"vni=43,remote={far},name=again")
    seen: list[tuple[str, bytes]] = []
    stacks[1].register_ethertype(TYPE, lambda interface, frames: seen.extend((interface.name, bytes(one)) for one in frames))
    interfaces = stacks[0].interfaces
    assert await settle(lambda: all(one.up for stack in stacks for one in stack.interfaces))
    sent = [frame(BROADCAST, one.mac, one.name.encode()) for one in interfaces]
    for one, data in zip(interfaces, sent, strict=True):
        stacks[0].output(one, [data])
    assert await settle(lambda: len(seen) == 2)
    assert seen == [("vxlan42", sent[0]), ("vxlan43", sent[1])]
    assert interfaces[0].statistics.info["networks on this port"] == 2
    stacks[1].unload(loaded[1][0])
    stacks[0].output(interfaces[1], [sent[1]])
    stacks[0].output(interfaces[0], [sent[0]])
    assert await settle(lambda: stacks[1].interfaces[0].drops.get("rx_other_network") == 1)
    assert seen[2:] == [("vxlan43", sent[1])]
    for stack in stacks:
        stack.close()
    with underlay.a.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 4789))


@pytest.mark.priv
async def test_the_underlay_is_followed(dispatch: TrioDispatch, underlay: Veth) -> None:
    driver = made(dispatch, underlay.a, A, remote=(FAR,), local=NEAR)
    port = RecordingPort()
    driver.start(port)
    assert await settle(lambda: driver.up)
    underlay.b.ip("link", "set", "vb", "down")
    assert await settle(lambda: not driver.up)
    driver.transmit([frame(B, A, b"x")])
    assert port.drops == {"link_down": 1}
    underlay.b.ip("link", "set", "vb", "up")
    assert await settle(lambda: driver.up)
    driver.detach()


class Relay(RecordingPort):
    def __init__(self) -> None:
        super().__init__()
        self.to: Driver | None = None
        self.number = 0

    def deliver(self, frames: list[Frame]) -> None:
        self.number += len(frames)
        assert self.to is not None
        self.to.transmit(frames)


@pytest.mark.priv
async def test_linux_is_on_the_same_ethernet(dispatch: TrioDispatch, underlay: Veth, namespace: Namespace) -> None:
    """A machine behind a tap of ours and one behind Linux's VXLAN device find each other by ARP, and speak TCP both ways."""
    underlay.b.ip("link", "add", "vx0", "type", "vxlan", "id", "42", "dstport", "4789", "remote", NEAR, "local", FAR)
    with underlay.b.entered():
        offloads_off("vx0")
    underlay.b.ip("address", "add", "10.8.0.2/24", "dev", "vx0")
    underlay.b.ip("link", "set", "vx0", "up")
    tunnel = made(dispatch, underlay.a, A, remote=(FAR,))
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions("t0", mtu=1450), A)
    namespace.ip("address", "add", "10.8.0.1/24", "dev", "t0")
    ports = [Relay(), Relay()]
    drivers: tuple[VxlanDriver | TapDriver, ...] = (tunnel, tap)
    for driver, port, there in zip(drivers, ports, reversed(drivers), strict=True):
        port.to = there
        driver.start(port)
        driver.promiscuous(True)
        driver.accept(None)
    assert await settle(lambda: tunnel.up and tap.up)
    for near, far, address in ((namespace, underlay.b, "10.8.0.2"), (underlay.b, namespace, "10.8.0.1")):
        assert await carried(near, far, address)
    assert min(port.number for port in ports) > 500
    assert "rx_malformed" not in ports[0].drops
    tunnel.detach()
    tap.detach()


async def carried(near: Namespace, far: Namespace, address: str) -> bool:
    data = random.Random(1).randbytes(1_000_000)
    with far.entered():
        server = trio.socket.socket()
    with near.entered():
        client = trio.socket.socket()
    with server, client, trio.fail_after(60):
        await server.bind((address, 0))
        server.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connect, server.getsockname())
            connection, _ = await server.accept()
        received = bytearray()
        with connection:

            async def send() -> None:
                view = memoryview(data)
                while view:
                    view = view[await client.send(view) :]
                client.shutdown(socket.SHUT_WR)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while part := await connection.recv(1 << 20):
                    received += part
    return received == data


@pytest.mark.priv
async def test_refusals_are_one_sentence(dispatch: TrioDispatch, underlay: Veth) -> None:
    with underlay.a.entered():
        first = VxlanDriver(dispatch, VxlanOptions(42, (FAR,)), A)
        for options, code, text in (
            (VxlanOptions(43, (FAR,)), errno.EADDRINUSE, "cannot use all addresses, UDP port 4789"),
            (VxlanOptions(43), errno.EINVAL, "give another end"),
            (VxlanOptions(43, ("some.host",)), errno.EINVAL, "vxlan: 'some.host'"),
            (VxlanOptions(43, (FAR, "fd00::2")), errno.EINVAL, "do not go together"),
            (VxlanOptions(43, ("239.1.1.1",)), errno.EINVAL, "cannot be sent to"),
            (VxlanOptions(43, group=FAR, dev="va"), errno.EINVAL, "no multicast address"),
            (VxlanOptions(43, group="239.1.1.1"), errno.EINVAL, "needs the interface"),
            (VxlanOptions(43, group="239.1.1.1", dev="none", port=4790), errno.ENODEV, "no network interface none"),
            (VxlanOptions(43, (FAR,), local="10.77.0.1", port=4790), errno.EADDRNOTAVAIL, "cannot use 10.77.0.1"),
            (VxlanOptions(43, (FAR,), mac="x"), errno.EINVAL, "vxlan: 'x'"),
        ):
            with pytest.raises(ModuleError, match=text) as raised:
                VxlanDriver(dispatch, options, A)
            assert raised.value.errno == code, raised.value
            assert "\n" not in str(raised.value)
        first.start(RecordingPort())
        first.detach()


def test_options() -> None:
    parsed = parse_options(VxlanOptions, "vni=42,remote=192.0.2.7,remote=[2001:db8::1]:4790", "vxlan")
    assert parsed == VxlanOptions(42, ("192.0.2.7", "[2001:db8::1]:4790"))
    for text in ("remote=192.0.2.7", "vni=16777216,remote=192.0.2.7"):
        with pytest.raises(OptionError):
            parse_options(VxlanOptions, text, "vxlan")


def test_stations_are_learned_move_grow_stale_and_have_an_end() -> None:
    stations: Stations[str] = Stations(3)
    for number, there in enumerate("abc"):
        stations.learn(bytes([number]), there, float(number))
    stations.learn(b"\x09", "d", 10.0)
    assert (len(stations), stations.refused) == (3, 1), "nobody who speaks is pushed out"
    assert stations.find(b"\x09", 10.0) is None
    stations.learn(b"\x00", "z", 11.0)
    assert stations.find(b"\x00", 11.0) == "z"
    stations.learn(b"\x09", "d", 1.0 + AGE)
    assert stations.find(b"\x09", 1.0 + AGE) == "d", "in the place of the one that is silent longest"
    assert stations.find(b"\x01", 1.0 + AGE) is None
    assert stations.find(b"\x02", 2.0 + AGE) is None
    assert stations.find(b"\x00", 2.0 + AGE) == "z"
    stations.forget()
    assert len(stations) == 0
