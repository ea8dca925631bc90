"""VLANs and aggregates on real interfaces: packet drivers on veth pairs between namespaces. This kernel has neither 8021q nor bonding: the
far end is another stack of ours, or a raw socket that writes and reads the tags itself.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.ifnet import Interface
from stack.core.stack import Stack
from stack.frame import Frame
from stack.testing.driver import TYPE, frame
from stack.testing.namespace import Namespace
from stack.wire.ethernet import BROADCAST
from stack.wire.vlan import tagged

pytestmark = pytest.mark.priv
CABLES = 2


@attrs.define(eq=False)
class End:
    """One machine: its stack in a namespace, and what its protocol got."""

    stack: Stack
    namespace: Namespace
    seen: list[tuple[str, bytes]]

    def send(self, name: str, to: bytes, mark: bytes) -> bytes:
        interface = self.interface(name)
        one = frame(to, interface.mac, mark.ljust(46, b"."))
        self.stack.output(interface, [one])
        return one

    def interface(self, name: str) -> Interface:
        found = self.stack.interface(name)
        assert found is not None
        return found


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, End]]:
    """Two machines with CABLES cables, en0 and en1 at both ends."""
    spaces = [Namespace.make(), Namespace.make()]
    try:
        for number in range(CABLES):
            spaces[0].ip("link", "add", f"en{number}", "type", "veth", "peer", "name", f"far{number}")
            spaces[0].move(f"far{number}", spaces[1])
            spaces[1].ip("link", "set", f"far{number}", "name", f"en{number}")
            for space in spaces:
                space.ip("link", "set", f"en{number}", "addrgenmode", "none", "up")
        async with open_dispatch() as dispatch:
            made = []
            for index, space in enumerate(spaces):
                stack = Stack(System(dispatch, f"n{index}"), random.Random(index).randbytes, f"n{index}")
                end = End(stack, space, [])
                with space.entered():
                    for number in range(CABLES):
                        stack.load("packet", f"ifname=en{number}")
                stack.register_ethertype(TYPE, _keeping(end.seen))
                made.append(end)
            try:
                yield made[0], made[1]
            finally:
                for end in made:
                    end.stack.close()
            assert dispatch.statistics().descriptors == 0
    finally:
        for space in spaces:
            space.close()


def _keeping(seen: list[tuple[str, bytes]]) -> Callable[[Interface, list[Frame]], None]:
    def keep(interface: Interface, frames: list[Frame]) -> None:
        seen.extend((interface.name, bytes(one)) for one in frames)

    return keep


async def shortly(what: Callable[[], bool], seconds: float = 5.0) -> bool:
    with trio.move_on_after(seconds):
        while not what():  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
            await trio.sleep(0.01)
        return True
    return False


async def test_vlans_through_the_kernel() -> None:
    """The kernel takes tags out of frames on their way up: the packet driver puts them back, and each VLAN gets its own."""
    async with ends() as (a, b):
        for end in (a, b):
            for vlan in (5, 6):
                end.stack.load("vlan", f"vlan={vlan},vlanif=en0,prio=3")
        sent = [a.send(name, BROADCAST, name.encode()) for name in ("vlan5", "vlan6", "en0")]
        assert await shortly(lambda: len(b.seen) == 3)
        assert b.seen == [("vlan5", sent[0]), ("vlan6", sent[1]), ("en0", sent[2])]
        whole = a.send("vlan5", b.interface("vlan5").mac, bytes(1500))
        assert await shortly(lambda: len(b.seen) == 4)
        assert b.seen[3] == ("vlan5", whole)


async def test_tags_that_others_write() -> None:
    async with ends() as (a, b):
        b.stack.load("vlan", "vlan=5,vlanif=en0")
        with a.namespace.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with sock:
            sock.bind(("en0", 0))
            plain = frame(BROADCAST, bytes((2, 0, 0, 0, 0, 7)), bytes(46))
            for vlan in (7, 5, 0):
                sock.send(tagged(plain, vlan, 1))
            assert await shortly(lambda: len(b.seen) == 2)
        assert b.seen[0] == ("vlan5", plain)
        assert b.seen[1][0] == "en0"
        assert b.interface("en0").drops["no_vlan"] == 1


async def test_an_aggregate_of_cables_loses_one() -> None:
    async with ends() as (a, b):
        for end in (a, b):
            end.stack.load("agr", "agrport=en0,agrport=en1")
        assert await shortly(lambda: a.interface("agr0").up and b.interface("agr0").up, 10)
        assert await shortly(
            lambda: "en0 en1" == a.interface("agr0").driver.info()["carrying"] == b.interface("agr0").driver.info()["carrying"], 5
        )
        to = b.interface("agr0").mac
        for number in range(64):
            source = bytes((2, 7, 0, 0, 0, number))
            a.stack.output(a.interface("agr0"), [frame(to, source, bytes(46))])
        assert await shortly(lambda: len(b.seen) == 64)
        assert min(b.interface(name).rx_frames for name in ("en0", "en1")) > 10

        b.seen.clear()
        a.namespace.ip("link", "set", "en0", "down")
        assert await shortly(lambda: a.interface("agr0").driver.info()["carrying"] == "en1")
        for number in range(64):
            source = bytes((2, 7, 0, 0, 0, number))
            a.stack.output(a.interface("agr0"), [frame(to, source, bytes(46))])
        assert await shortly(lambda: len(b.seen) == 64)
        assert {name for name, _ in b.seen} == {"agr0"}
