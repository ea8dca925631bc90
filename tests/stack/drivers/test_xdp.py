"""The AF_XDP driver on a veth pair between two real namespaces."""

from __future__ import annotations

import errno
import socket
from typing import Literal

import pytest

from resmgr.runner import TrioDispatch
from stack.core.errors import ModuleError, OptionError
from stack.core.options import parse_options
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.drivers.xdp import XdpDriver, XdpOptions
from stack.ebpf.assembler import R0, Assembler, Code
from stack.ebpf.constants import Xdp, XdpMode
from stack.ebpf.program import Program, XdpLink
from stack.testing.driver import TYPE, RecordingPort, check_driver, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import Pair, settle, through_fault

pytestmark = pytest.mark.priv

Mode = Literal["native", "generic"]


def xdp(dispatch: TrioDispatch, namespace: Namespace, ifname: str, mode: Mode = "native", frames: int = 2048) -> XdpDriver:
    with namespace.entered():
        return XdpDriver(dispatch, parse_options(XdpOptions, f"ifname={ifname},xdp={mode},frames={frames}", "xdp"))


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize(("mtu", "wrapped"), [(1500, False), (3000, False), (9000, False), (65535, False), (1500, True)])
async def test_contract(dispatch: TrioDispatch, veth: Veth, mode: Mode, mtu: int, wrapped: bool) -> None:
    veth.a.ip("link", "set", "va", "mtu", str(mtu))
    veth.b.ip("link", "set", "vb", "mtu", str(mtu))
    a, b = xdp(dispatch, veth.a, "va", mode), xdp(dispatch, veth.b, "vb", mode)
    await check_driver(Pair(*through_fault(dispatch, a, b)) if wrapped else Pair(a, b))
    assert dispatch.statistics().descriptors == 0
    assert "xdp" not in veth.a.output("link", "show", "va")


@pytest.mark.parametrize("turned", [False, True])
async def test_contract_against_packet(dispatch: TrioDispatch, veth: Veth, turned: bool) -> None:
    a = xdp(dispatch, veth.a, "va")
    with veth.b.entered():
        b = PacketDriver(dispatch, PacketOptions("vb"))
    await check_driver(Pair(b, a) if turned else Pair(a, b))


async def test_what_nobody_wants_reaches_the_kernel(dispatch: TrioDispatch, veth: Veth) -> None:
    port = RecordingPort()
    a = xdp(dispatch, veth.a, "va")
    a.start(port)
    a.accept(frozenset((TYPE,)))
    with veth.a.entered():
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        heard.bind(("va", 3))
    with veth.b.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sender.bind(("vb", 0))
    kernel: list[bytes] = []

    def hear() -> list[bytes]:
        while True:
            try:
                one = heard.recv(2048)
            except BlockingIOError:
                return kernel
            if one[12:14] in (b"\x88\xb5", b"\x88\xb6"):
                kernel.append(one)

    ours, theirs = frame(a.mac, b"\2\0\0\0\0\x0b", b"x" * 50), frame(a.mac, b"\2\0\0\0\0\x0b", b"y" * 50, 0x88B6)
    sender.send(ours)
    sender.send(theirs)
    assert await settle(lambda: bool(port.frames) and bool(hear()))
    assert (port.frames, kernel) == ([ours], [theirs])
    a.detach()
    sender.send(ours)
    assert await settle(lambda: len(hear()) == 2)
    heard.close()
    sender.close()


async def test_rings_go_round_and_overruns_are_counted(dispatch: TrioDispatch, veth: Veth) -> None:
    a, b = xdp(dispatch, veth.a, "va", frames=64), xdp(dispatch, veth.b, "vb", frames=64)
    port_a, port_b = RecordingPort(), RecordingPort()
    for driver, port in ((a, port_a), (b, port_b)):
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
    assert await settle(lambda: a.up and b.up)
    sent = [frame(b.mac, a.mac, number.to_bytes(4, "big") * 20) for number in range(600)]
    for number in range(200):
        a.transmit([sent[number]])
        assert await settle(lambda number=number: len(port_b.frames) == number + 1)  # type: ignore[misc]  # mypy does not infer a lambda with a default
    port_b.frames.clear()
    for start in range(0, 600, 25):
        a.transmit(list(sent[start : start + 25]))
        assert await settle(lambda start=start: len(port_b.frames) == start + 25)  # type: ignore[misc]  # mypy does not infer a lambda with a default
    assert port_b.frames == sent
    port_b.frames.clear()
    for start in range(0, 600, 30):
        a.transmit(list(sent[start : start + 30]))

    def accounted() -> bool:
        b.info()
        return len(port_b.frames) + sum(port_a.drops.values()) + sum(port_b.drops.values()) == 600

    assert await settle(accounted), (len(port_b.frames), port_a.drops, port_b.drops)
    assert port_b.drops["rx_overrun"] > 0 or port_a.drops["tx_queue_full"] > 0
    a.detach()
    b.detach()


async def test_link_mtu_and_return_are_followed(dispatch: TrioDispatch, veth: Veth) -> None:
    a = xdp(dispatch, veth.a, "va")
    b = xdp(dispatch, veth.b, "vb")
    port_a, port_b = RecordingPort(), RecordingPort()
    for driver, port in ((a, port_a), (b, port_b)):
        driver.start(port)
        driver.accept(frozenset((TYPE,)))
    a.promiscuous(True)
    a.groups(frozenset((b"\x01\0\x5e\0\0\x42",)))
    assert "01:00:5e:00:00:42" in veth.a.output("maddress", "show", "dev", "va")
    assert "PROMISC" in veth.a.output("link", "show", "va") or "promiscuity 1" in veth.a.output("-d", "link", "show", "va")
    veth.b.ip("link", "set", "vb", "down")
    assert await settle(lambda: not a.up and not b.up)
    a.transmit([frame(b.mac, a.mac, b"lost")])
    assert port_a.drops == {"link_down": 1}
    veth.b.ip("link", "set", "vb", "mtu", "5000", "up")
    veth.a.ip("link", "set", "va", "mtu", "5000")
    assert await settle(lambda: a.up and b.up and a.mtu == b.mtu == 5000)
    long = frame(b.mac, a.mac, bytes(range(250)) * 20)
    a.transmit([long])
    assert await settle(lambda: port_b.frames == [long])
    veth.a.ip("link", "del", "va")
    assert await settle(lambda: not a.up and "gone" in str(a.info()["receive"]))
    veth.a.ip("link", "add", "va", "type", "veth", "peer", "name", "vb")
    veth.a.move("vb", veth.b)
    veth.a.ip("link", "set", "va", "up")
    veth.b.ip("link", "set", "vb", "up")
    assert await settle(lambda: a.up and b.up)
    again = frame(b"\2\0\0\0\0\x77", b.mac, b"after the return, for another" * 4)
    b.transmit([again])
    assert await settle(lambda: port_a.frames == [again])
    assert "01:00:5e:00:00:42" in veth.a.output("maddress", "show", "dev", "va")
    a.groups(frozenset())
    assert "01:00:5e:00:00:42" not in veth.a.output("maddress", "show", "dev", "va")
    a.detach()
    b.detach()
    assert dispatch.statistics().descriptors == 0


def receiving_nothing() -> Code:
    asm = Assembler()
    asm.constant(R0, Xdp.PASS)
    asm.exit()
    return asm.assemble()


async def test_refusals(dispatch: TrioDispatch, veth: Veth) -> None:
    a = xdp(dispatch, veth.a, "va")
    with veth.a.entered():
        for options, text in (
            (XdpOptions("va"), "another AF_XDP socket has its queue 0"),
            (XdpOptions("none"), "no network interface none"),
            (XdpOptions("lo"), "no Ethernet"),
        ):
            with pytest.raises(ModuleError, match=text):
                XdpDriver(dispatch, options)
    with pytest.raises(OptionError, match="power of two"):
        parse_options(XdpOptions, "ifname=va,frames=100", "xdp")
    with veth.b.entered(), pytest.raises(ModuleError, match="zero copy"):
        XdpDriver(dispatch, XdpOptions("vb", copy="off"))
    a.detach()
    with veth.a.entered(), Program(receiving_nothing(), "other") as program:
        link = XdpLink(program, socket.if_nametoindex("va"), XdpMode.NATIVE)
        with pytest.raises(ModuleError, match="another XDP program is on it"):
            XdpDriver(dispatch, XdpOptions("va"))
        link.close()
    assert dispatch.statistics().descriptors == 0
    assert "xdp" not in veth.b.output("link", "show", "vb")


async def test_an_interface_that_is_refused_once_is_taken_whole(
    dispatch: TrioDispatch, veth: Veth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel refuses is the packet socket for groups and promiscuity."""
    a, port = xdp(dispatch, veth.a, "va"), RecordingPort()
    a.start(port)
    a.accept(frozenset((TYPE,)))
    join, refused = XdpDriver._join, [1]

    def flaky(driver: XdpDriver, others: bool, groups: frozenset[bytes]) -> None:
        if refused:
            refused.pop()
            raise OSError(errno.ENOBUFS, "No buffer space available")
        join(driver, others, groups)

    monkeypatch.setattr(XdpDriver, "_join", flaky)
    veth.a.ip("link", "set", "va", "mtu", "1400")
    assert await settle(lambda: a.mtu == 1400 and a.up and not refused)
    with veth.b.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("vb", 0))
        sent = frame(a.mac, b"\2\0\0\0\0\x0b", b"x" * 50)
        sender.send(sent)
        assert await settle(lambda: port.frames == [sent])
    a.detach()


async def test_an_interface_that_returns_as_another_kind_is_not_taken(
    dispatch: TrioDispatch, veth: Veth, caplog: pytest.LogCaptureFixture
) -> None:
    a, port = xdp(dispatch, veth.a, "va"), RecordingPort()
    a.start(port)
    mac = a.mac
    veth.a.ip("link", "delete", "va")
    assert await settle(lambda: not a.up)
    veth.a.ip("tuntap", "add", "va", "mode", "tun")
    veth.a.ip("link", "set", "va", "up")
    assert await settle(lambda: "interface va is now one of another kind" in caplog.text)
    assert (a.up, a.mac, "gone" in str(a.info()["receive"])) == (False, mac, True)
    a.detach()
