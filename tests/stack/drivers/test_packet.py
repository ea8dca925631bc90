"""The packet driver on a veth pair between two real namespaces."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import attrs
import pytest

from resmgr.runner import TrioDispatch
from stack.core.errors import ModuleError
from stack.core.options import Size, parse_options
from stack.core.screen import Screen
from stack.core.statistics import Drop
from stack.drivers.packet import PacketDriver, PacketOptions
from stack.filter.bpf.assembler import JEQ, JGE, LD_B_IND, RET, SAMPLE_SIZE, WHOLE, Assembler, Code
from stack.frame import Frame
from stack.testing.driver import OTHER_TYPE, TYPE, RecordingPort, check_driver, frame
from stack.testing.namespace import Namespace, Veth
from stack.testing.pair import Pair, settle, through_fault

pytestmark = pytest.mark.priv

Rx = Literal["ring", "recv"]


def open_pair(dispatch: TrioDispatch, veth: Veth, rx: Rx = "ring", **options: Any) -> tuple[PacketDriver, PacketDriver]:
    with veth.a.entered():
        a = PacketDriver(dispatch, PacketOptions("va", rx=rx, **options))
    with veth.b.entered():
        b = PacketDriver(dispatch, PacketOptions("vb", rx=rx, **options))
    return a, b


@pytest.mark.parametrize("rx", ["ring", "recv"])
@pytest.mark.parametrize(("mtu", "wrapped"), [(1500, False), (9000, False), (1500, True)])
async def test_contract(dispatch: TrioDispatch, veth: Veth, rx: Rx, mtu: int, wrapped: bool) -> None:
    veth.a.ip("link", "set", "va", "mtu", str(mtu))
    veth.b.ip("link", "set", "vb", "mtu", str(mtu))
    a, b = open_pair(dispatch, veth, rx)
    assert a.mtu == mtu
    await check_driver(Pair(*through_fault(dispatch, a, b)) if wrapped else Pair(a, b))
    assert dispatch.statistics().descriptors == 0


class Ends:
    """Both drivers started, each with a port that records."""

    def __init__(self, a: PacketDriver, b: PacketDriver) -> None:
        self.a, self.b = a, b
        self.port_a, self.port_b = RecordingPort(), RecordingPort()
        for driver, port in ((a, self.port_a), (b, self.port_b)):
            driver.start(port)
            driver.accept(frozenset((TYPE,)))

    def frames(self, count: int, size: int = 100) -> list[Frame]:
        return [frame(self.b.mac, self.a.mac, number.to_bytes(4, "big") * (size // 4)) for number in range(count)]


@pytest.fixture
async def ends(dispatch: TrioDispatch, veth: Veth) -> AsyncIterator[Ends]:
    made = Ends(*open_pair(dispatch, veth, ring=Size(1 << 18)))
    assert await settle(lambda: made.a.up and made.b.up)
    yield made
    made.a.detach()
    made.b.detach()
    assert dispatch.statistics().descriptors == 0


async def test_ring_goes_round(ends: Ends) -> None:
    """More frames than slots, in portions that do not divide their number."""
    sent: list[bytes] = []
    for _ in range(40):
        portion = ends.frames(37)
        ends.a.transmit(portion)
        sent.extend(map(bytes, portion))
        assert await settle(lambda: len(ends.port_b.frames) == len(sent))
    assert ends.port_b.frames == sent
    assert ends.port_b.drops == {}


async def test_overrun_is_counted_and_what_fits_arrives(ends: Ends) -> None:
    """The node does not look while a burst comes that is larger than the ring."""
    burst = ends.frames(600)
    for start in range(0, 600, 30):
        ends.a.transmit(burst[start : start + 30])
    assert await settle(lambda: bool(ends.port_b.frames))
    ends.a.transmit(burst[:1])  # the first frame behind the gap says that there is one
    assert await settle(lambda: bool(ends.port_b.drops))
    lost = ends.port_b.drops["rx_overrun"]
    assert 0 < lost < 600
    assert ends.port_b.frames == [*burst[: 600 - lost], burst[0]]
    assert ends.b.info()["receive overruns"] == lost


@pytest.mark.parametrize("rx", ["ring", "recv"])
async def test_what_lies_in_the_ring_is_counted_when_that_goes(dispatch: TrioDispatch, veth: Veth, rx: Rx) -> None:
    """Frames have come that nobody has looked at: another MTU takes them away, or the end of the driver."""
    ends = Ends(*open_pair(dispatch, veth, rx))
    ends.a.transmit(ends.frames(300))
    ends.b._resize(3000)
    assert ends.port_b.drops == {"rx_resized": 300}
    ends.a.transmit(ends.frames(200))
    ends.b.detach()
    assert ends.port_b.drops == {"rx_resized": 300, Drop.LINK_DOWN: 200}
    assert ends.port_b.frames == []
    ends.a.detach()


async def test_link_state_address_and_mtu_are_followed(ends: Ends, veth: Veth) -> None:
    veth.a.ip("link", "set", "va", "down")
    assert await settle(lambda: not ends.a.up and not ends.b.up)
    changes = ends.port_a.changes
    assert changes > 0
    ends.a.transmit(ends.frames(2))
    ends.a.transmit(ends.frames(20))
    assert ends.port_a.drops == {Drop.LINK_DOWN: 22}
    veth.a.ip("link", "set", "va", "address", "02:00:00:00:00:cc", "mtu", "9000")
    veth.b.ip("link", "set", "vb", "mtu", "9000")
    veth.a.ip("link", "set", "va", "up")
    assert await settle(lambda: ends.a.up and ends.b.up and ends.a.mtu == ends.b.mtu == 9000)
    assert ends.a.mac.hex() == "0200000000cc"
    large = frame(ends.b.mac, ends.a.mac, bytes(range(250)) * 36)
    ends.a.transmit([large])
    assert await settle(lambda: ends.port_b.frames == [large])


async def test_a_link_that_is_down_does_not_keep_the_node_busy(ends: Ends, veth: Veth, dispatch: TrioDispatch) -> None:
    """The error that the kernel leaves on the socket is fetched: the descriptor is readable once, not for ever."""
    veth.b.ip("link", "set", "vb", "down")
    assert await settle(lambda: not ends.b.up)
    before = dispatch.statistics().turns
    assert not await settle(lambda: False, 0.2)
    assert dispatch.statistics().turns - before < 10


async def test_interface_that_vanishes_and_comes_back(ends: Ends, veth: Veth) -> None:
    veth.b.ip("link", "delete", "vb")
    assert await settle(lambda: not ends.a.up and not ends.b.up)
    ends.b.transmit(ends.frames(3))
    assert ends.port_b.drops == {Drop.LINK_DOWN: 3}
    veth.a.ip("link", "add", "va", "type", "veth", "peer", "name", "vx")
    veth.a.move("vx", veth.b)
    veth.b.ip("link", "set", "vx", "name", "vb", "mtu", "4000", "up")
    veth.a.ip("link", "set", "va", "mtu", "4000", "up")
    assert await settle(lambda: ends.a.up and ends.b.up)
    assert (ends.a.mtu, ends.b.mtu) == (4000, 4000)
    portion = ends.frames(20, 3900)
    ends.a.transmit(portion)
    assert await settle(lambda: len(ends.port_b.frames) == 20)
    assert ends.port_b.frames == portion


async def test_what_the_system_refused_is_not_asked_for_again(ends: Ends, veth: Veth, capfd: pytest.CaptureFixture[str]) -> None:
    """The interface is gone, and the driver has not heard of it yet."""
    veth.a.ip("link", "del", "va")
    with pytest.raises(OSError, match="No such device"):
        ends.a.promiscuous(True)
    with pytest.raises(OSError, match="No such device"):
        ends.a.groups(frozenset((bytes.fromhex("0100deadbeef"),)))
    assert await settle(lambda: not ends.a.up, 3)
    veth.a.ip("link", "add", "va", "type", "veth", "peer", "name", "vc")
    veth.a.ip("link", "set", "va", "up")
    veth.a.ip("link", "set", "vc", "up")
    assert await settle(lambda: ends.a.up, 3)
    veth.a.ip("-d", "link", "show", "va")
    veth.a.ip("maddress", "show", "va")
    told = capfd.readouterr().out
    assert "promiscuity 0" in told
    assert "33:33:00:00:00:01" in told
    assert "01:00:de:ad:be:ef" not in told


async def test_return_of_an_interface_is_seen_though_its_report_was_lost(ends: Ends, veth: Veth) -> None:
    """So many interfaces come and go at once that the kernel drops reports: the driver asks for what it may have missed."""
    ends.b._monitor._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    veth.b.ip("link", "delete", "vb")
    veth.a.ip("link", "add", "va", "type", "veth", "peer", "name", "vb", "address", "02:00:00:00:00:0d")
    veth.a.move("vb", veth.b)
    for _ in range(10):
        veth.b.ip("link", "add", "noise0", "type", "veth", "peer", "name", "noise1")
        veth.b.ip("link", "delete", "noise0")
    veth.b.ip("link", "set", "vb", "up")
    veth.a.ip("link", "set", "va", "up")
    assert await settle(lambda: ends.b.mac.hex() == "02000000000d" and ends.b.up and ends.a.up)
    portion = ends.frames(5)
    ends.a.transmit(portion)
    assert await settle(lambda: ends.port_b.frames == portion)


async def test_frames_that_somebody_keeps_do_no_harm(ends: Ends, veth: Veth) -> None:
    """A module that breaks the rule keeps bytes of the ring: the ring stays while he has them, and everything goes on."""
    kept: list[Frame] = []
    ends.port_b.on_frames = kept.extend
    ends.a.transmit(ends.frames(3))
    assert await settle(lambda: len(kept) == 3)
    ends.port_b.on_frames = None
    veth.a.ip("link", "set", "va", "mtu", "3000")
    veth.b.ip("link", "set", "vb", "mtu", "3000")
    assert await settle(lambda: ends.a.mtu == ends.b.mtu == 3000)
    assert ends.a.info()["receive"] != ends.b.info()["receive"]
    longer = [*ends.frames(1, 2900), *ends.frames(1)]
    ends.a.transmit(longer)
    assert await settle(lambda: len(ends.port_b.frames) == 5)
    assert ends.port_b.frames[3:] == longer
    assert ends.port_b.drops == {}
    ends.b.detach()
    assert len(bytes(kept[0])) == 114


async def test_several_nodes_on_one_interface(ends: Ends, dispatch: TrioDispatch, veth: Veth) -> None:
    with veth.b.entered():
        third = PacketDriver(dispatch, PacketOptions("vb"))
    port = RecordingPort()
    third.start(port)
    third.accept(frozenset((OTHER_TYPE,)))
    other = frame(ends.b.mac, ends.a.mac, b"other", OTHER_TYPE)
    one = frame(ends.b.mac, ends.a.mac, b"one")
    ends.a.transmit([one, other])
    assert await settle(lambda: bool(port.frames) and bool(ends.port_b.frames))
    assert (port.frames, ends.port_b.frames) == ([other], [one])
    third.detach()


def refusal(dispatch: TrioDispatch, options: PacketOptions) -> ModuleError:
    with pytest.raises(ModuleError) as raised:
        PacketDriver(dispatch, options)
    assert dispatch.statistics().descriptors == 0
    assert "\n" not in str(raised.value)
    return raised.value


async def test_refusals_are_one_sentence(dispatch: TrioDispatch, namespace: Namespace) -> None:
    with namespace.entered():
        there = str(refusal(dispatch, PacketOptions("eth7")))
        assert there.startswith("there is no network interface eth7 in this network namespace; there is: ")
        assert "lo" in there
        assert "no network interface" in str(refusal(dispatch, PacketOptions("a-name-that-is-longer-than-linux-allows")))
        namespace.ip("tuntap", "add", "tun7", "mode", "tun")
        assert "no Ethernet" in str(refusal(dispatch, PacketOptions("tun7")))


NO_RIGHT = """
import os
from resmgr.testing.virtual import VirtualDispatch
from stack.drivers.packet import PacketDriver, PacketOptions
os.setgid(65534)
os.setuid(65534)
try:
    PacketDriver(VirtualDispatch(1), PacketOptions("lo"))
except OSError as error:
    print(error.errno, error)
"""


def test_without_the_right() -> None:
    result = subprocess.run(
        [sys.executable, "-c", NO_RIGHT], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert result.stdout == "1 no right to send and receive frames on lo: this needs root or the capability CAP_NET_RAW\n"


def test_options() -> None:
    assert parse_options(PacketOptions, "ifname=eth0,ring=1M,rx=recv", "packet") == PacketOptions("eth0", rx="recv", ring=Size(1 << 20))
    for text, sentence in (
        ("", "packet: option ifname is missing: ifname=TEXT"),
        ("ifname=eth0,rx=rng", "packet: rx=rng: expected one of auto, ring, recv"),
        ("ifnam=eth0", "packet: there is no option ifnam; did you mean ifname?"),
        ("ifname=eth0,ring=1", "packet: 'ring' must be >= 65536: 1"),
    ):
        with pytest.raises(ModuleError) as raised:
            parse_options(PacketOptions, text, "packet")
        assert str(raised.value) == sentence


def screen_of(pressed: Callable[[], None] = lambda: None) -> Screen:
    """By the first byte of the payload: 1 to the main queue, 2 to the side, others are shed, and each of them is a sample."""

    def queue(wanted: int, other: int) -> Code:
        asm = Assembler()
        asm.op(LD_B_IND, 0)
        asm.branch(JEQ, wanted, "yes")
        asm.branch(JGE, 3, None, "no")
        asm.op(RET, other)
        asm.label("no")
        asm.op(RET, 0)
        asm.label("yes")
        asm.op(RET, WHOLE)
        return asm.assemble()

    return Screen(queue(1, 0), queue(2, SAMPLE_SIZE), 10, pressed)


def marked(ends: Ends, mark: int, count: int) -> list[Frame]:
    return [frame(ends.b.mac, ends.a.mac, bytes((mark,)) + number.to_bytes(4, "big") + bytes(200)) for number in range(count)]


async def test_a_screen_sorts_into_two_queues_and_sheds(ends: Ends) -> None:
    ends.b.screen({TYPE: screen_of()})
    main, side, shed = (marked(ends, mark, 20) for mark in (1, 2, 3))
    for one in zip(main, side, shed, strict=True):
        ends.a.transmit(list(one))
    assert await settle(lambda: len(ends.port_b.frames) == 40 and ends.b.shed == 200)
    assert [one for one in ends.port_b.frames if one in main] == main
    assert [one for one in ends.port_b.frames if one in side] == side
    assert ends.b.info()["screened out"] == 200
    ends.b.screen({TYPE: attrs.evolve(screen_of(), sample_of=64)})
    assert ends.b.shed == 200, "what was shed stays that"
    ends.b.screen({})
    assert ends.b.shed == 200
    ends.a.transmit(shed)
    assert await settle(lambda: len(ends.port_b.frames) == 60)


async def test_a_flood_in_the_side_queue_does_not_touch_the_main_one(ends: Ends) -> None:
    """Ten times what either ring holds, sent while the node does not look, and after it only then."""
    pressed = []
    ends.b.screen({TYPE: screen_of(lambda: pressed.append(1))})
    main = marked(ends, 1, 50)
    ends.a.transmit(main)
    for _ in range(80):
        ends.a.transmit(marked(ends, 2, 30))
    assert await settle(lambda: bool(pressed) and len([one for one in ends.port_b.frames if one in main]) == 50)
    assert ends.port_b.drops == {}, "nothing was lost in the main queue"
    assert await settle(lambda: int(ends.b.info()["side queue overruns"]) > 1000)
    assert ends.port_b.drops == {"rx_side_overrun": ends.b.info()["side queue overruns"]}
    # What is left in the side queue comes in portions; then it is empty, and the node sleeps.
    assert await settle(lambda: len(ends.port_b.frames) == 50 + 80)
    assert not await settle(lambda: len(ends.port_b.frames) != 50 + 80, 0.25)


async def test_a_program_that_the_kernel_refuses_leaves_everything_as_it_was(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    broken = ((0xFFFF, 0, 0, 0),)
    ends.b.screen({TYPE: Screen(broken, broken, 1, lambda: None)})
    assert "no screen on vb" in caplog.text
    assert str(ends.b.info()["screen"]).startswith("none: ")
    frames = [one for mark in (1, 2, 3) for one in marked(ends, mark, 5)]
    ends.a.transmit(frames)
    assert await settle(lambda: ends.port_b.frames == frames)
    ends.b.screen({TYPE: screen_of()})
    ends.a.transmit(marked(ends, 3, 5))
    assert await settle(lambda: ends.b.shed == 50)


async def test_a_screen_follows_the_interface(ends: Ends, veth: Veth) -> None:
    ends.b.screen({TYPE: screen_of()})
    veth.b.ip("link", "set", "vb", "down")
    assert await settle(lambda: not ends.b.up)
    veth.b.ip("link", "set", "vb", "up")
    assert await settle(lambda: ends.a.up and ends.b.up)
    ends.a.transmit([*marked(ends, 2, 3), *marked(ends, 3, 3)])
    assert await settle(lambda: len(ends.port_b.frames) == 3 and ends.b.shed == 30)


GROUP, OTHER_GROUP = bytes.fromhex("03716e657400"), bytes.fromhex("03716e657401")


def groups_of(veth: Veth) -> set[bytes]:
    """What the card of vb lets through, of those that these tests name."""
    with veth.b.entered():
        listed = subprocess.run(["ip", "maddress", "show", "dev", "vb"], check=True, capture_output=True, text=True).stdout.split()
    return {group for group in (GROUP, OTHER_GROUP) if group.hex(":") in listed}


async def test_a_card_is_told_which_groups_it_is_in(ends: Ends, veth: Veth) -> None:
    assert groups_of(veth) == set()
    changes: list[set[bytes]] = [{GROUP}, {GROUP, OTHER_GROUP}, {OTHER_GROUP}, {OTHER_GROUP}, set()]
    for groups in changes:
        ends.b.groups(frozenset(groups))
        assert groups_of(veth) == groups
    ends.b.groups(frozenset({GROUP}))
    sent = frame(GROUP, ends.a.mac, b"to the group".ljust(46, b"."))
    ends.a.transmit([sent])
    assert await settle(lambda: ends.port_b.frames == [sent])
    ends.b.detach()
    assert groups_of(veth) == set()


async def test_groups_are_kept_when_the_interface_is_another(ends: Ends, veth: Veth) -> None:
    ends.b.groups(frozenset({GROUP}))
    veth.b.ip("link", "delete", "vb")
    assert await settle(lambda: not ends.b.up)
    ends.b.groups(frozenset({GROUP, OTHER_GROUP}))
    veth.b.ip("link", "add", "vb", "type", "veth", "peer", "name", "vc")
    veth.b.ip("link", "set", "vb", "up")
    veth.b.ip("link", "set", "vc", "up")
    assert await settle(lambda: ends.b.up)
    assert groups_of(veth) == {GROUP, OTHER_GROUP}


async def test_detach_from_within_a_delivery_of_the_side_queue(dispatch: TrioDispatch, veth: Veth) -> None:
    made = Ends(*open_pair(dispatch, veth))
    assert await settle(lambda: made.a.up and made.b.up)
    made.b.screen({TYPE: screen_of()})
    kept: list[Frame] = []

    def deliver(frames: list[Frame]) -> None:
        made.b.detach()
        kept.extend(map(bytes, frames))

    made.port_b.deliver = deliver  # type: ignore[method-assign]  # the port of this test
    sent = marked(made, 2, 3)
    made.a.transmit(sent)
    assert await settle(lambda: bool(kept))
    assert kept == sent[: len(kept)]
    made.a.detach()
    assert dispatch.statistics().descriptors == 0


async def test_a_screen_that_finds_no_interface_is_none_and_the_next_one_is(ends: Ends, veth: Veth) -> None:
    veth.b.ip("link", "delete", "vb")
    # The driver has not heard of it yet.
    ends.b.screen({TYPE: screen_of()})
    assert str(ends.b.info()["screen"]).startswith("none: ")
    assert await settle(lambda: not ends.b.up)
    veth.b.ip("link", "add", "vb", "type", "veth", "peer", "name", "vc")
    veth.b.ip("link", "set", "vb", "up")
    veth.b.ip("link", "set", "vc", "up")
    assert await settle(lambda: ends.b.up)
    ends.b.screen({TYPE: screen_of()})
    assert not str(ends.b.info()["screen"]).startswith("none")


async def test_an_interface_that_returns_as_another_kind_is_not_taken(ends: Ends, veth: Veth, caplog: pytest.LogCaptureFixture) -> None:
    mac = ends.b.mac
    veth.b.ip("link", "delete", "vb")
    assert await settle(lambda: not ends.b.up)
    changes = ends.port_b.changes
    veth.b.ip("tuntap", "add", "vb", "mode", "tun")
    veth.b.ip("link", "set", "vb", "up")
    assert await settle(lambda: "interface vb is now one of another kind (device type 65534)" in caplog.text)
    assert (ends.b.up, ends.b.mac, ends.b.linux_index, ends.port_b.changes) == (False, mac, 0, changes)
    veth.b.ip("link", "delete", "vb")
    veth.b.ip("link", "add", "vb", "type", "veth", "peer", "name", "vc")
    veth.b.ip("link", "set", "vb", "up")
    veth.b.ip("link", "set", "vc", "up")
    assert await settle(lambda: ends.b.up)
    assert len([one for one in caplog.records if "another kind" in one.getMessage()]) == 1
