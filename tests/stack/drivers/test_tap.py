"""The tap driver: the contract with Linux's end of the device as the other station, and Linux's own TCP between two machines through us."""

from __future__ import annotations

import errno
import random
import socket
import subprocess
import sys
from typing import Any

import pytest
import trio

from resmgr.runner import TrioDispatch
from resmgr.system import System
from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.core.options import parse_options
from stack.core.stack import Stack
from stack.core.statistics import Drop
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.tap import TapDriver, TapOptions
from stack.drivers.wrap.fault import FaultDriver, FaultOptions
from stack.frame import Frame
from stack.testing.driver import RecordingPort, check_driver, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import Pair, settle
from stack.wire.ethernet import BROADCAST

MAC = b"\2\0\0\0\0\x77"


@pytest.fixture
def other() -> Any:
    made = Namespace.make()
    yield made
    made.close()


@pytest.mark.priv
@pytest.mark.parametrize("direction", ["to linux", "from linux"])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract(dispatch: TrioDispatch, namespace: Namespace, direction: str, wrapped: bool) -> None:
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions("t0"), MAC)
        linux = PacketDriver(dispatch, PacketOptions("t0"))
    ends: list[Driver] = [tap, linux] if direction == "to linux" else [linux, tap]
    if wrapped:
        outer = [FaultDriver(dispatch, FaultOptions()) for _ in range(2)]
        for wrapper, driver in zip(outer, ends, strict=True):
            wrapper.around(driver)
        ends = list(outer)
    await check_driver(Pair(*ends))


class Relay(RecordingPort):
    """Gives what arrives to another driver."""

    def __init__(self) -> None:
        super().__init__()
        self.to: Driver | None = None
        self.longest = 0
        self.number = 0

    def deliver(self, frames: list[Frame]) -> None:
        self.longest = max(self.longest, max(map(len, frames)))
        self.number += len(frames)
        assert self.to is not None
        self.to.transmit(frames)


def relay(*drivers: TapDriver | PacketDriver) -> list[Relay]:
    """Two drivers, each of which sends what the other receives."""
    ports = [Relay(), Relay()]
    for driver, port, there in zip(drivers, ports, reversed(drivers), strict=True):
        port.to = there
        driver.start(port)
        driver.promiscuous(True)
        driver.accept(None)
    return ports


def host(namespace: Namespace, link: str, address: str) -> None:
    namespace.ip("address", "add", address, "dev", link)
    namespace.ip("link", "set", "lo", "up")


async def carry(near: Namespace, far: Namespace, address: str, size: int) -> bool:
    """A TCP stream from one machine to the other's address, both of Linux's own; whether it arrives as it was sent."""
    data = random.Random(size).randbytes(size)
    with far.entered():
        server = trio.socket.socket()
    with near.entered():
        client = trio.socket.socket()
    with server, client:
        await server.bind((address, 0))
        server.listen(1)
        received = bytearray()

        async def send() -> None:
            await client.connect(server.getsockname())
            view = memoryview(data)
            while view:
                view = view[await client.send(view) :]
            client.shutdown(socket.SHUT_WR)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                connection, _ = await server.accept()
                with connection:
                    while part := await connection.recv(1 << 20):
                        received += part
    return received == data


@pytest.mark.priv
@pytest.mark.parametrize("runs", [True, False])
async def test_two_machines_speak_tcp_through_us(dispatch: TrioDispatch, namespace: Namespace, other: Namespace, runs: bool) -> None:
    """Linux hands over runs of segments with partial checksums; the other machine gets frames as on a wire, and takes them."""
    taps: list[TapDriver] = []
    for place in (namespace, other):
        with place.entered():
            taps.append(TapDriver(dispatch, TapOptions("t0", runs=runs), MAC[:5] + bytes((len(taps),))))
    ports = relay(*taps)
    host(namespace, "t0", "10.8.0.1/24")
    host(other, "t0", "10.8.0.2/24")
    assert await settle(lambda: all(tap.up for tap in taps))
    assert await carry(namespace, other, "10.8.0.2", 4_000_000)
    assert max(port.longest for port in ports) <= 1514
    assert ports[0].number > 4_000_000 // 1500
    assert ("runs taken apart" in taps[0].info()) == runs
    assert all("rx_unfinished" not in port.drops for port in ports)
    for tap in taps:
        tap.detach()


@pytest.mark.priv
async def test_a_machine_reaches_another_over_a_cable(dispatch: TrioDispatch, namespace: Namespace, veth: Veth) -> None:
    """From a tap out of a packet driver and back: whole frames both ways, from Linux's stack at either end."""
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions("t0"), MAC)
    with veth.a.entered():
        cable = PacketDriver(dispatch, PacketOptions("va"))
    ports = relay(tap, cable)
    host(namespace, "t0", "10.8.0.1/24")
    host(veth.b, "vb", "10.8.0.2/24")
    assert await settle(lambda: tap.up and cable.up)
    assert await carry(namespace, veth.b, "10.8.0.2", 2_000_000)
    assert await carry(veth.b, namespace, "10.8.0.1", 2_000_000)
    assert max(port.longest for port in ports) <= 1514
    assert int(cable.info()["runs taken apart"]) > 0
    tap.detach()
    cable.detach()


@pytest.mark.priv
async def test_the_linux_interface_is_followed_and_goes_with_the_driver(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions(mtu=2000), MAC)
    port = RecordingPort()
    tap.start(port)
    name = tap.name
    assert name == "tap0"
    assert await settle(lambda: tap.up)
    assert tap.mtu == 2000
    namespace.ip("link", "set", name, "mtu", "1200")
    assert await settle(lambda: tap.mtu == 1200)
    one = frame(BROADCAST, MAC, bytes(100))
    namespace.ip("link", "set", name, "down")
    assert await settle(lambda: not tap.up)
    tap.transmit([one, one])
    assert port.drops == {Drop.LINK_DOWN: 2}
    namespace.ip("link", "set", name, "up")
    assert await settle(lambda: tap.up)
    tap.transmit([one, b"short", bytes(1215)])
    assert port.drops == {Drop.LINK_DOWN: 2, Drop.TOO_SHORT: 1, Drop.TOO_LONG: 1}
    tap.detach()
    with namespace.entered():
        assert name not in [there for _, there in socket.if_nameindex()]


@pytest.mark.priv
async def test_a_deleted_interface_is_a_link_that_is_down(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions("t0"), MAC)
    port = RecordingPort()
    tap.start(port)
    tap.accept(None)
    assert await settle(lambda: tap.up)
    namespace.ip("link", "delete", "t0")
    assert await settle(lambda: not tap.up)
    turns = dispatch.statistics().turns
    assert not await settle(lambda: False, 0.2)
    assert dispatch.statistics().turns - turns < 10
    tap.transmit([frame(BROADCAST, MAC, bytes(100))])
    assert port.drops == {Drop.LINK_DOWN: 1}
    assert tap.info()["linux interface"] == "t0 (deleted)"
    tap.detach()


@pytest.mark.priv
async def test_it_loads_into_a_stack(dispatch: TrioDispatch, namespace: Namespace) -> None:
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    with namespace.entered():
        loaded = stack.load("tap", "ifname=t0,name=host0")
    assert loaded.interface is not None
    assert loaded.interface.name == "host0"
    assert not loaded.interface.mac[0] & 1
    stack.close()


@pytest.mark.priv
async def test_refusals_are_one_sentence(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        first = TapDriver(dispatch, TapOptions("t0"), MAC)
        for options, code, text in (
            (TapOptions("t0"), errno.EBUSY, "cannot make the tap device t0"),
            (TapOptions("a-name-that-is-too-long"), errno.EINVAL, "cannot be the name"),
            (TapOptions("t1", mac="01:00:00:00:00:01"), errno.EINVAL, "address of a group"),
            (TapOptions("t1", mac="x"), errno.EINVAL, "tap: 'x'"),
        ):
            with pytest.raises(ModuleError, match=text) as raised:
                TapDriver(dispatch, options, MAC)
            assert raised.value.errno == code
            assert "\n" not in str(raised.value)
        first.detach()
        assert [name for _, name in socket.if_nameindex()] == ["lo"]


NO_RIGHT = """
import os
from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.tap import TapDriver, TapOptions
os.setgid(65534)
os.setuid(65534)
try:
    TapDriver(VirtualDispatch(1), TapOptions("t0"), bytes(6))
except OSError as error:
    print(error.errno, error)
"""


@pytest.mark.priv
def test_without_the_right() -> None:
    result = subprocess.run(
        [sys.executable, "-c", NO_RIGHT], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stdout in (
        "1 no right to make the tap device t0: this needs root or the capability CAP_NET_ADMIN\n",
        "13 cannot open /dev/net/tun, which makes tap devices: Permission denied\n",
    )


def test_options() -> None:
    assert parse_options(TapOptions, "", "tap") == TapOptions()
    assert parse_options(TapOptions, "ifname=t0,mtu=9000,runs,up=off", "tap") == TapOptions("t0", mtu=9000, runs=True, up=False)
    with pytest.raises(ModuleError, match="mtu"):
        parse_options(TapOptions, "mtu=1", "tap")
