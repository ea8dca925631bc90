"""Our bridge and the Linux bridge with its own spanning tree, joined by two cables: a loop, which the two break together.

    s1 --- ks [ Linux bridge br0 ] kx0 ======== x0 [ bridge0 ] os --- s2
                                   kx1 ======== x1

Linux speaks 802.1D-1998 only. Its shortest timers are used: hello 1 s, forward delay 2 s, max age 6 s.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import pytest
import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.specific import plain, specific_driver
from stack.core.stack import Stack
from stack.testing.driver import TYPE, frame
from stack.testing.namespace import Namespace
from stack.wire.ethernet import BROADCAST

pytestmark = pytest.mark.priv

S1, S2 = bytes.fromhex("020000000051"), bytes.fromhex("020000000052")
TIMERS = "hellotime=1s,fwddelay=2s,maxage=6s"


@attrs.frozen
class Yard:
    """The namespaces, and a raw socket at each station."""

    linux: Namespace
    ours: Namespace
    one: socket.socket
    two: socket.socket

    def states(self) -> dict[str, str]:
        """What Linux's ports do."""
        with self.linux.entered():
            told = subprocess.run(["bridge", "-j", "link", "show"], capture_output=True, text=True, check=True)
        return {port["ifname"]: port["state"] for port in json.loads(told.stdout)}

    def is_root(self) -> bool:
        """Whether Linux takes itself for the root. (ip(8) shows its own identifier for the root's, whoever that is.)"""
        with self.linux.entered():
            told = subprocess.run(["ip", "-j", "-d", "link", "show", "br0"], capture_output=True, text=True, check=True)
        return bool(json.loads(told.stdout)[0]["linkinfo"]["info_data"]["root_port"] == 0)

    async def passes(self, seconds: float) -> bool:
        """A frame each way arrives before long."""
        return await wait_for(self._both_ways, seconds)

    async def _both_ways(self) -> bool:
        _emptied(self.one), _emptied(self.two)
        self.one.send(frame(S2, S1, bytes(46)))
        self.two.send(frame(S1, S2, bytes(46)))
        await trio.sleep(0.1)
        return bool(_emptied(self.one)) and bool(_emptied(self.two))

    async def copies(self, count: int) -> int:
        """How many broadcasts arrive at station two of *count* that station one sends."""
        _emptied(self.two)
        for number in range(count):
            self.one.send(frame(BROADCAST, S1, number.to_bytes(4, "big") + bytes(42)))
        await trio.sleep(0.5)
        return _emptied(self.two)


def _emptied(sock: socket.socket) -> int:
    """Take what has arrived; how many frames of ours it was."""
    got = 0
    try:
        while True:
            got += sock.recv(2000)[12:14] == TYPE.to_bytes(2, "big")
    except BlockingIOError:
        return got


def _station(namespace: Namespace, name: str) -> socket.socket:
    with namespace.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(TYPE))
    sock.bind((name, TYPE))
    sock.setblocking(False)
    return sock


@contextmanager
def built(priority: int) -> Iterator[Yard]:
    """*priority* is that of the Linux bridge."""
    made = [Namespace.make() for _ in range(4)]
    linux, ours, first, second = made
    try:
        timers = ("hello_time", "100", "forward_delay", "200", "max_age", "600")
        linux.ip("link", "add", "br0", "type", "bridge", "stp_state", "1", *timers, "priority", str(priority))
        for mine, theirs, where in (("kx0", "x0", ours), ("kx1", "x1", ours), ("ks", "s1", first)):
            linux.ip("link", "add", mine, "type", "veth", "peer", "name", theirs)
            linux.move(theirs, where)
            linux.ip("link", "set", mine, "master", "br0", "up")
            where.ip("link", "set", theirs, "up")
        ours.ip("link", "add", "os", "type", "veth", "peer", "name", "s2")
        ours.move("s2", second)
        ours.ip("link", "set", "os", "up")
        first.ip("link", "set", "s1", "promisc", "on")
        second.ip("link", "set", "s2", "promisc", "on", "up")
        linux.ip("link", "set", "br0", "up")
        with _station(first, "s1") as one, _station(second, "s2") as two:
            yield Yard(linux, ours, one, two)
    finally:
        for namespace in made:
            namespace.close()


@asynccontextmanager
async def bridged(yard: Yard, options: str) -> AsyncIterator[Stack]:
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
        try:
            with yard.ours.entered():
                for name in ("x0", "x1", "os"):
                    stack.load("packet", f"ifname={name}")
            stack.load("bridge", f"add=x0,add=x1,add=os,stp,{TIMERS},{options}")
            yield stack
        finally:
            stack.close()


def told(stack: Stack) -> dict[str, dict[str, str]]:
    """The tree's view of our ports."""
    interface = stack.interface("bridge0")
    assert interface is not None
    driver = specific_driver(interface.driver)
    assert driver is not None
    members = plain(driver.get_specific()["members"])
    assert isinstance(members, list)
    return {one["interface"]: one["stp"] for one in members}


async def wait_for(what: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Until it is so."""
    with trio.move_on_after(seconds):
        while not await what():  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
            await trio.sleep(0.1)
        return True
    return False


async def shortly(what: Callable[[], bool], seconds: float) -> bool:
    async def ask() -> bool:
        return what()

    return await wait_for(ask, seconds)


async def test_one_of_us_is_the_root_and_the_tree_mends_itself() -> None:
    """Linux's timers are what this takes: all cases wait for theirs at the same time."""
    async with trio.open_nursery() as nursery:
        for protocol in ("rstp", "stp"):
            nursery.start_soon(_linux_is_the_root, protocol)
            nursery.start_soon(_we_are_the_root, protocol)


async def _linux_is_the_root(protocol: str) -> None:
    with built(0x1000) as yard:
        async with bridged(yard, f"proto={protocol},mac=02:00:00:00:00:01") as stack:
            assert await yard.passes(30)
            assert yard.is_root()
            assert await shortly(lambda: sorted(told(stack)[one]["role"] for one in ("x0", "x1")) == ["alternate", "root"], 10)
            assert await shortly(lambda: {told(stack)[one]["protocol"] for one in ("x0", "x1")} == {"stp"}, 10)
            assert set(yard.states().values()) == {"forwarding"}
            assert await yard.copies(20) == 20

            (way,) = [one for one in ("x0", "x1") if told(stack)[one]["role"] == "root"]
            yard.linux.ip("link", "set", f"k{way}", "down")
            assert await yard.passes(25)
            assert await yard.copies(20) == 20


async def _we_are_the_root(protocol: str) -> None:
    with built(0x9000) as yard:
        async with bridged(yard, f"proto={protocol},mac=02:00:00:00:00:01") as stack:
            assert await yard.passes(40)
            assert await shortly(lambda: not yard.is_root(), 20)
            assert await shortly(lambda: sorted(yard.states().values()) == ["blocking", "forwarding", "forwarding"], 20)
            assert {told(stack)[one]["role"] for one in ("x0", "x1", "os")} == {"designated"}
            assert await yard.copies(20) == 20

            (way,) = [one for one in ("x0", "x1") if yard.states()[f"k{one}"] == "forwarding"]
            yard.ours.ip("link", "set", way, "down")
            assert await yard.passes(25)
            assert await yard.copies(20) == 20


@pytest.mark.parametrize("storm", [0, 200])
async def test_without_a_tree_a_frame_circles_until_it_meets_the_bound(storm: int) -> None:
    """The proof that the cables are a loop, and that storm control ends it where nothing else does."""
    with built(0x8000) as yard:
        yard.linux.ip("link", "set", "br0", "down")
        for setting in ("stp_state", "forward_delay"):
            yard.linux.ip("link", "set", "br0", "type", "bridge", setting, "0")
        yard.linux.ip("link", "set", "br0", "up")
        async with bridged(yard, f"mac=02:00:00:00:00:01,storm={storm}") as stack:
            driver = specific_driver(stack.interface("bridge0").driver)  # type: ignore[union-attr]  # it was loaded
            assert driver is not None
            for name in ("x0", "x1", "os"):
                driver.set_specific("stp", {"interface": name, "on": False})
            assert await shortly(lambda: set(yard.states().values()) == {"forwarding"}, 10)
            yard.one.send(frame(BROADCAST, S1, bytes(46)))
            begin, before = trio.current_time(), stack.statistics().interfaces["os"].tx_frames

            def sent() -> int:
                return stack.statistics().interfaces["os"].tx_frames - before

            if storm:
                assert await shortly(lambda: sent() > 10, 10)
                await trio.sleep(0.5)
                assert sent() < 2 * storm * (trio.current_time() - begin + 0.1)
            else:
                assert await shortly(lambda: sent() > 2000, 30)
