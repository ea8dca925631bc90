"""What is under way when a driver goes has a name."""

from __future__ import annotations

import socket
import time
from types import ModuleType

import attrs
import pytest

from resmgr.runner import TrioDispatch
from resmgr.testing.virtual import VirtualDispatch
from stack.core.driver import Driver
from stack.core.statistics import Drop
from stack.drivers import tap as tap_module
from stack.drivers import udp as udp_module
from stack.drivers.hub import Hub
from stack.drivers.lo import LoopbackDriver, LoOptions
from stack.drivers.tap import TapDriver, TapOptions
from stack.drivers.udp import UdpDriver
from stack.drivers.udp_socket.options import UdpOptions
from stack.drivers.xdp import XdpDriver, XdpOptions
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import settle
from stack.wire.ethernet import BROADCAST

MAC, OTHER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


class Leaving(RecordingPort):
    """Its driver goes with the first batch, which is as small as can be."""

    def __init__(self, driver: Driver, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._driver = driver
        monkeypatch.setattr(module, "in_batches", lambda frames: [[one] for one in frames])
        driver.start(self)
        driver.accept(frozenset((TYPE,)))

    def deliver(self, frames: list[Frame]) -> None:
        super().deliver(frames)
        self._driver.detach()


def test_a_port_of_a_hub() -> None:
    dispatch = VirtualDispatch(1)
    hub = Hub(dispatch)
    sender, gone = hub.port("en0", MAC), hub.port("en1", OTHER)
    port = RecordingPort()
    for driver in (sender, gone):
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
    sender.transmit([frame(BROADCAST, MAC, b"one"), frame(BROADCAST, MAC, b"two")])
    gone.detach()
    assert (port.frames, port.drops) == ([], {Drop.LINK_DOWN: 2})


def test_a_loopback() -> None:
    driver, port = LoopbackDriver(VirtualDispatch(1), LoOptions()), RecordingPort()
    driver.start(port)
    driver.accept(None)
    driver.transmit([frame(BROADCAST, driver.mac, b"one"), frame(BROADCAST, driver.mac, b"two")])
    driver.detach()
    assert (port.frames, port.drops) == ([], {Drop.LINK_DOWN: 2})


@pytest.mark.host
async def test_a_udp_driver(dispatch: TrioDispatch, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (UdpDriver(dispatch, UdpOptions(port=0, bind=("127.0.0.1",))) for _ in range(2))
    leaving = Leaving(b, udp_module, monkeypatch)
    a.start(RecordingPort())
    station = a.station(b.local()[0])
    assert station is not None
    a.transmit([frame(station, a.mac, bytes((number,)) * 50) for number in range(3)])
    assert await settle(lambda: bool(leaving.frames))
    assert (len(leaving.frames), leaving.drops) == (1, {Drop.LINK_DOWN: 2})
    a.detach()


@pytest.mark.priv
async def test_a_tap(dispatch: TrioDispatch, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with namespace.entered():
        tap = TapDriver(dispatch, TapOptions("t0"), MAC)
        linux = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    leaving = Leaving(tap, tap_module, monkeypatch)
    with linux:
        linux.bind(("t0", 0))
        for number in range(3):
            linux.send(frame(MAC, OTHER, bytes((number,)) * 50))
        assert await settle(lambda: bool(leaving.frames))
    assert (len(leaving.frames), leaving.drops) == (1, {Drop.LINK_DOWN: 2})


@pytest.mark.priv
@pytest.mark.parametrize("why", [Drop.LINK_DOWN, "rx_resized"])
async def test_xdp(dispatch: TrioDispatch, veth: Veth, why: str) -> None:
    with veth.a.entered():
        xdp = XdpDriver(dispatch, XdpOptions("va", xdp="generic"))
    with veth.b.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port = RecordingPort()
    xdp.start(port)
    xdp.accept(frozenset((TYPE,)))
    with sender:
        sender.bind(("vb", 0))
        for _ in range(3):
            sender.send(frame(xdp.mac, OTHER, bytes(50)))
        queues = xdp._attachment.queues if xdp._attachment is not None else ()
        deadline = time.monotonic() + 5
        while sum(queue._rx.counters[queue._rx.producer] for queue in queues) < 3 and time.monotonic() < deadline:
            pass  # no turn of the dispatch passes
        if why == Drop.LINK_DOWN:
            xdp.detach()
        else:
            assert xdp._link is not None
            xdp._link_reported(attrs.evolve(xdp._link, mtu=1400))
        assert (port.frames, port.drops) == ([], {why: 3})
        xdp.detach()
