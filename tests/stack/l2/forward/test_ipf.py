"""`ipf`: a filter module sees what a bridge carries between namespaces, by every engine, and one UDP port does not get through."""

from __future__ import annotations

import socket

import attrs
import pytest

from resmgr.system import System
from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.ipfilters import Packet
from stack.core.module import Context, Kind, Module
from stack.core.stack import Stack
from stack.l2.bridge_driver import FILTERED
from tests.stack.l2.forward.conftest import Town, settle, station
from tests.stack.l2.forward.test_bridge import bridge_of, engine_of

pytestmark = pytest.mark.priv
CLOSED, OPEN = 7001, 7002


@attrs.frozen
class NoOptions:
    pass


class PortFilter:
    """Drops UDP to port CLOSED on the way in; raises once *broken*."""

    def __init__(self, context: Context, options: NoOptions) -> None:
        self.seen: list[tuple[str, Point]] = []
        self.broken = False
        self.registration = context.stack.add_ip_filter(self.passing, "portfilter")

    def passing(self, interface: Interface, point: Point, packets: list[Packet]) -> list[bool]:
        self.seen += [(interface.name, point) for _ in packets]
        if self.broken:
            raise RuntimeError("broken")
        return [self._passes(one) for one in packets]

    def _passes(self, one: Packet) -> bool:
        place = one.network + one.header.payload + 2
        return one.header.protocol != 17 or one.header.fragment or int.from_bytes(one.frame[place : place + 2], "big") != CLOSED

    def detach(self) -> None:
        self.registration.revoke()


FILTER = Module("portfilter", Kind.PROTOCOL, NoOptions, PortFilter)


@pytest.mark.parametrize("engine", ["kernel", "threads", "none"])
async def test_one_port_is_closed(town: Town, engine: str) -> None:
    stack = Stack(System(town.dispatch, "n"), lambda size: b"\x5a" * size)
    socks = []
    with town.middle.entered():
        for number in range(2):
            stack.load("packet", f"ifname=p{number}")
        driver = bridge_of(stack, f"add=p0,add=p1,engine={engine}")
    assert await settle(lambda: all(port.up for port in stack.interfaces))
    for number in range(2):
        town.hosts[number].namespace.ip("addr", "add", f"10.9.0.{number + 1}/24", "dev", f"h{number}")
        with town.hosts[number].namespace.entered():
            socks.append([socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(2)])
    near, (closed, opened) = socks[0][0], socks[1]
    closed.bind(("10.9.0.2", CLOSED))
    opened.bind(("10.9.0.2", OPEN))

    async def arrives() -> set[int]:
        """What gets through: a datagram to the open port goes behind one to the closed port."""
        near.sendto(b"x", ("10.9.0.2", CLOSED))
        near.sendto(b"x", ("10.9.0.2", OPEN))
        got = set()

        def look() -> bool:
            for port, sock in ((CLOSED, closed), (OPEN, opened)):
                try:
                    sock.recv(100)
                    got.add(port)
                except BlockingIOError:
                    pass
            return OPEN in got

        await settle(look, 1.5)
        return got

    def why() -> list[str]:
        return [reason for port in engine_of(driver)["ports"].values() for reason in port["off"]]

    assert await arrives() == {CLOSED, OPEN}
    loaded = stack.load(FILTER)
    filters = loaded.attached
    assert isinstance(filters, PortFilter)
    assert FILTERED not in why()
    assert await arrives() == {CLOSED, OPEN}
    assert filters.seen == []
    driver.set_specific("ipf", {"on": True})
    assert why().count(FILTERED) == 2
    assert await arrives() == {OPEN}
    assert {("p0", Point.IN), ("p1", Point.OUT)} <= set(filters.seen)
    assert driver.members["p0"].port.drops["ip_filtered"] == 1
    assert driver.get_specific()["ipf"] is True

    bad = driver.members["p0"].port.drops.get("bad_ip", 0)
    town.hosts[0].send(station(1) + station(0) + b"\x08\0" + bytes(46), station(1) + station(0) + b"\x86\xdd\x45" + bytes(60))
    assert await settle(lambda: driver.members["p0"].port.drops.get("bad_ip", 0) == bad + 2)

    filters.broken = True
    assert await arrives() == set(), "a filter that fails drops"
    filters.broken = False
    driver.set_specific("ipf", {"on": False})
    assert FILTERED not in why()
    assert await arrives() == {CLOSED, OPEN}
    driver.set_specific("ipf", {"on": True})
    stack.unload(loaded)
    assert FILTERED not in why()
    assert await arrives() == {CLOSED, OPEN}
    for sock in (*socks[0], *socks[1]):
        sock.close()
    stack.close()
    assert town.dispatch.statistics().descriptors == 0
