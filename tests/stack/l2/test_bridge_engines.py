"""The bridge with its forwarding engines on Linux interfaces: learned by the slow path, carried by the fast one, aged by both.

s1 (own namespace) --- o1 [ bridge0 ] o2 --- s2 (own namespace)
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import pytest
import trio

from resmgr.runner import open_dispatch
from resmgr.system import System
from stack.core.ifnet import Interface
from stack.core.specific import Rows, specific_driver
from stack.core.stack import Stack
from stack.frame import Frame
from stack.managers.facts import interfaces
from stack.managers.layer2 import Layer2
from stack.testing.driver import TYPE, frame
from stack.testing.namespace import Namespace
from stack.wire.ethernet import BROADCAST

pytestmark = pytest.mark.priv

S1, S2 = bytes.fromhex("020000000051"), bytes.fromhex("020000000052")


@attrs.frozen
class Yard:
    ours: Namespace
    one: socket.socket
    two: socket.socket

    def taken(self, sock: socket.socket) -> list[bytes]:
        """Frames of ours that have arrived."""
        got = []
        try:
            while True:
                got.append(sock.recv(2000))
        except BlockingIOError:
            return [one for one in got if one[12:14] == TYPE.to_bytes(2, "big")]


def _station(namespace: Namespace, name: str) -> socket.socket:
    with namespace.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(TYPE))
    sock.bind((name, TYPE))
    sock.setblocking(False)
    return sock


@contextmanager
def built() -> Iterator[Yard]:
    ours, first, second = made = [Namespace.make() for _ in range(3)]
    try:
        for mine, theirs, mac, where in (("o1", "s1", S1, first), ("o2", "s2", S2, second)):
            ours.ip("link", "add", mine, "type", "veth", "peer", "name", theirs, "address", mac.hex(":"))
            ours.move(theirs, where)
            ours.ip("link", "set", mine, "up")
            # Without an address of its own, a station says nothing that it is not told to say.
            where.ip("link", "set", theirs, "addrgenmode", "none", "up")
        with _station(first, "s1") as one, _station(second, "s2") as two:
            yield Yard(ours, one, two)
    finally:
        for namespace in made:
            namespace.close()


@asynccontextmanager
async def bridged(yard: Yard, options: str) -> AsyncIterator[Stack]:
    async with open_dispatch() as dispatch:
        stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
        try:
            with yard.ours.entered():
                for name in ("o1", "o2"):
                    stack.load("packet", f"ifname={name}")
                stack.load("bridge", f"add=o1,add=o2,{options}")
            yield stack
        finally:
            stack.close()
        assert dispatch.statistics().descriptors == 0


def told(stack: Stack) -> dict[str, object]:
    interface = stack.interface("bridge0")
    assert interface is not None
    driver = specific_driver(interface.driver)
    assert driver is not None
    return dict(driver.get_specific())


def known(stack: Stack) -> set[str]:
    addresses = told(stack)["addresses"]
    assert isinstance(addresses, Rows)
    return {str(one["address"]) for one in addresses}


def carried(stack: Stack) -> int:
    engine = told(stack)["engine"]
    assert isinstance(engine, dict)
    return int(engine["frames"])


async def shortly(what: Callable[[], bool], seconds: float = 5.0) -> bool:
    with trio.move_on_after(seconds):
        while not what():  # noqa: ASYNC110  # what is awaited is the kernel: there is no event to wait for
            await trio.sleep(0.02)
        return True
    return False


@pytest.mark.parametrize("engine", ["none", "kernel", "threads", "auto"])
async def test_known_stations_go_by_the_engine(engine: str) -> None:
    with built() as yard:
        async with bridged(yard, f"engine={engine}") as stack:
            yard.one.send(frame(BROADCAST, S1, bytes(46)))
            yard.two.send(frame(BROADCAST, S2, bytes(46)))
            assert await shortly(lambda: {S1.hex(":"), S2.hex(":")} <= known(stack))
            await trio.sleep(0.2)
            yard.taken(yard.one), yard.taken(yard.two)
            got: list[bytes] = []
            sent = [frame(S2, S1, number.to_bytes(4, "big") * (15 + number)) for number in range(200)]
            for number, one in enumerate(sent):
                yard.one.send(one)
                if number % 20 == 19:
                    await trio.sleep(0.02)
                    got_more(yard, got)
            assert await shortly(lambda: len(got_more(yard, got)) >= 200)
            assert got == sent
            assert carried(stack) >= (0 if engine == "none" else 190)
            assert (carried(stack) == 0) is (engine == "none")
            # Whoever carried them, they came in at one interface and went out at the other.
            layer2 = Layer2(stack)
            first, second = (row for row in interfaces(stack, layer2) if row["module"] == "packet")
            assert [first["rx_frames"], second["tx_frames"]] == [201, 201]
            assert layer2.carried("o1").rx_frames == layer2.carried("o2").tx_frames == carried(stack)
            assert [one["name"] for one in layer2.engines if engine != "auto"] == [engine] * (engine != "auto")


def got_more(yard: Yard, got: list[bytes]) -> list[bytes]:
    got += yard.taken(yard.two)
    return got


async def test_what_the_engine_carries_keeps_a_station_known() -> None:
    """The bridge does not see those frames: it asks the engine before it lets the station go."""
    with built() as yard:
        async with bridged(yard, "engine=kernel,timeout=2s") as stack:
            yard.one.send(frame(BROADCAST, S1, bytes(46)))
            yard.two.send(frame(BROADCAST, S2, bytes(46)))
            assert await shortly(lambda: {S1.hex(":"), S2.hex(":")} <= known(stack))

            seen: list[float] = []

            def talking_it_goes() -> bool:
                yard.one.send(frame(S2, S1, bytes(46)))
                rows = told(stack)["addresses"]
                assert isinstance(rows, Rows)
                seen.extend(one["idle"] for one in rows if one["address"] == S1.hex(":"))  # type: ignore[misc]  # facts are for JSON
                return S2.hex(":") not in known(stack)

            assert await shortly(talking_it_goes, 10.0)
            # The kernel's program writes it once a second.
            assert max(seen) < 1.7
            assert S1.hex(":") in known(stack)
            assert carried(stack) > 0


async def test_a_blocked_port_is_off_and_a_span_port_turns_all_off() -> None:
    with built() as yard:
        async with bridged(yard, "engine=kernel,stp") as stack:
            engine = told(stack)["engine"]
            assert isinstance(engine, dict)
            assert "spanning tree" in engine["ports"]["o1"]["off"]
            assert await shortly(lambda: "spanning tree" not in told(stack)["engine"]["ports"]["o1"]["off"], 6)  # type: ignore[index]  # facts are for JSON


@pytest.mark.parametrize("engine", ["none", "kernel", "threads"])
async def test_who_hears_a_frame_may_unload_the_bridge(engine: str) -> None:
    """What came with that frame is heard once, in order, by whoever listens to the interfaces."""
    with built() as yard:
        async with bridged(yard, f"engine={engine}") as stack:
            heard: list[bytes] = []
            depth = deepest = 0

            def hear(_: Interface, frames: list[Frame]) -> None:
                nonlocal depth, deepest
                depth += 1
                deepest = max(deepest, depth)
                heard.extend(bytes(one)[14:15] for one in frames)
                for loaded in list(stack.loaded):
                    if loaded.module.name == "bridge":
                        stack.unload(loaded)
                depth -= 1

            stack.register_ethertype(TYPE, hear)
            for number in range(20):
                yard.one.send(frame(BROADCAST, S1, bytes((number,)) * 46))
            assert await shortly(lambda: len(heard) >= 20), heard
            await trio.sleep(0.05)
            assert heard == [bytes((number,)) for number in range(20)]
            assert deepest == 1


@pytest.mark.parametrize("engine", ["kernel", "threads"])
async def test_cables_of_our_own_are_carried_too(engine: str) -> None:
    """`-d veth` is the packet driver of its near end: nothing stands between it and an engine."""
    with built() as yard:
        async with open_dispatch() as dispatch:
            stack = Stack(System(dispatch, "n"), random.Random(1).randbytes)
            try:
                with yard.ours.entered():
                    stack.load("veth", "ifname=v1,peer=w1")
                    yard.ours.ip("link", "set", "w1", "up")
                    stack.load("bridge", f"add=v1,engine={engine}")

                def off() -> object:
                    found = told(stack)["engine"]
                    assert isinstance(found, dict)
                    return found["ports"]["v1"]["off"], bool(found["ports"]["v1"]["how"])

                assert await shortly(lambda: off() == ([], True)), off()
            finally:
                stack.close()
            assert dispatch.statistics().descriptors == 0
