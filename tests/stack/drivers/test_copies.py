"""How often Python copies a frame, path by path, as docs/stack/drivers.md says: by where the bytes lie, and by the senders' counts."""

from __future__ import annotations

import ctypes
import random
from collections.abc import AsyncIterator

import pytest

from resmgr.runner import TrioDispatch, open_dispatch
from resmgr.system import System
from resmgr.testing.virtual import VirtualDispatch
from stack.core.hooks import ORDER_BRIDGE, Point
from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.stack import Stack
from stack.drivers.af_packet.receiver import Ring
from stack.drivers.hub import Hub
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.tap import TapDriver
from stack.frame import Frame
from stack.testing.driver import TYPE, RecordingPort, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import settle


@pytest.fixture
async def dispatch() -> AsyncIterator[TrioDispatch]:
    async with open_dispatch() as made:
        yield made


def address(one: Frame) -> int:
    assert isinstance(one, memoryview)
    return ctypes.addressof(ctypes.c_char.from_buffer(one))


def within(driver: PacketDriver, one: Frame) -> bool:
    """The frame lies in the driver's ring."""
    ring = driver._receiver
    assert isinstance(ring, Ring)
    begin = address(ring._view)
    return begin <= address(one) < begin + len(ring._view)


def interface_of(loaded: Loaded) -> Interface:
    assert loaded.interface is not None
    return loaded.interface


@pytest.mark.priv
@pytest.mark.parametrize("number", [1, 40])
async def test_a_forwarded_frame_is_sent_from_the_ring_it_was_received_into(dispatch: TrioDispatch, veth: Veth, number: int) -> None:
    """From one Linux interface to another through a stack with a hook that forwards, tagged frames among them: no copy in Python."""
    out = Namespace.make()
    veth.b.ip("link", "add", "vc", "address", "02:00:00:00:00:0c", "type", "veth", "peer", "name", "vd", "address", "02:00:00:00:00:0d")
    veth.b.move("vd", out)
    veth.b.ip("link", "set", "vc", "up")
    out.ip("link", "set", "vd", "up")
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    with veth.b.entered():
        inside, outside = stack.load("packet", "ifname=vb"), stack.load("packet", "ifname=vc")
    with veth.a.entered():
        sender = PacketDriver(dispatch, PacketOptions("va"))
    with out.entered():
        receiver = PacketDriver(dispatch, PacketOptions("vd"))
    driver, port = inside.attached, RecordingPort()
    assert isinstance(driver, PacketDriver)
    lies: list[bool] = []

    def forward(interface: Interface, frames: list[Frame]) -> list[Frame]:
        if interface is not interface_of(inside):
            return frames
        lies.extend(within(driver, one) for one in frames)
        stack.output(interface_of(outside), frames)
        return []

    stack.add_hook(Point.IN, forward, order=ORDER_BRIDGE, name="forward", everything=True, counts=True)
    stack.promiscuous(interface_of(inside), "forward")
    sender.start(RecordingPort())
    receiver.start(port)
    receiver.promiscuous(True)
    receiver.accept(frozenset((TYPE,)))
    assert await settle(lambda: sender.up and receiver.up and driver.up and interface_of(outside).up)
    sent = [
        frame(b"\2\0\0\0\0\x99", sender.mac, bytes([index]) * 200, TYPE, ((0x8100, 5),) if index % 3 else ()) for index in range(number)
    ]
    sender.transmit(list(sent))
    assert await settle(lambda: len(port.frames) == number)
    assert port.frames == sent
    assert lies
    assert all(lies)
    transmitter = outside.attached
    assert isinstance(transmitter, PacketDriver)
    assert transmitter._output._sender.copied == 0
    assert transmitter._output.waiting == 0
    stack.close()
    sender.detach()
    receiver.detach()
    out.close()


@pytest.mark.priv
async def test_what_linux_sends_into_a_tap_is_handed_up_from_where_it_was_read(dispatch: TrioDispatch, namespace: Namespace) -> None:
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    with namespace.entered():
        loaded = stack.load("tap", "ifname=t0")
        linux = PacketDriver(dispatch, PacketOptions("t0"))
    driver = loaded.attached
    assert isinstance(driver, TapDriver)
    lies: list[bool] = []

    def handler(_: Interface, frames: list[Frame]) -> None:
        lies.extend(0 <= address(one) - address(driver._memory) < len(driver._memory) for one in frames)

    stack.register_ethertype(TYPE, handler)
    linux.start(RecordingPort())
    assert await settle(lambda: driver.up and linux.up)
    linux.transmit([frame(driver.mac, linux.mac, bytes(100))] * 20)
    assert await settle(lambda: len(lies) == 20)
    assert all(lies)
    stack.close()
    linux.detach()


def test_what_is_transmitted_reaches_the_driver_as_it_is() -> None:
    """Through hooks and wrappers that change nothing: the objects themselves."""
    dispatch = VirtualDispatch(1)
    stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
    loaded = stack.load(Hub(dispatch).module(), "mac=02:00:00:00:00:01", wrap=[("fault", ""), ("rate", "tx=1G"), ("tracer", "")])
    seen: list[Frame] = []
    inner: object = interface_of(loaded).driver
    while hasattr(inner, "inner"):
        inner = inner.inner
    inner.transmit = seen.extend  # type: ignore[attr-defined]  # the hub's port, in the place of a driver of this test
    frames: list[Frame] = [memoryview(frame(b"\2\0\0\0\0\2", b"\2\0\0\0\0\1", bytes(50))), bytearray(64), bytes(64)]
    stack.add_hook(Point.OUT, lambda interface, frames: frames, name="nothing")
    stack.output(interface_of(loaded), frames)
    assert [id(one) for one in seen] == [id(one) for one in frames]
