"""`agr0` on hubs under virtual time: flows, failures, and what a port is still good for."""

from __future__ import annotations

import pytest

from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.core.hooks import Point
from stack.core.statistics import Drop
from stack.l2.aggregate import AgrDriver, AgrOptions
from stack.l2.flowhash import flow_hash
from stack.testing.driver import check_driver, frame
from stack.testing.machines import DriverPair, Machine, World
from stack.testing.pair import through_fault
from stack.wire.ethernet import BROADCAST, Ethernet


def pair(cables: int = 2) -> tuple[World, Machine, Machine]:
    world = World(cables)
    a, b = world.machine("a", *range(cables)), world.machine("b", *range(cables))
    for machine in (a, b):
        machine.stack.load("agr", ",".join(f"agrport=en{number}" for number in range(cables)))
        machine.macs["agr0"] = machine.interface("agr0").mac
    world.dispatch.run_for(5)
    return world, a, b


def ipv4(source: bytes, to: bytes, ports: tuple[int, int], fragment: int = 0, protocol: int = 17) -> bytes:
    header = bytes((0x45, 0, 0, 48, 0, 0, fragment >> 8, fragment & 0xFF, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2))
    payload = ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big") + bytes(24)
    return Ethernet(to, source, 0x0800).pack() + header + payload


def test_it_comes_up_and_carries() -> None:
    world, a, b = pair()
    assert a.interface("agr0").up
    sent = a.send("agr0", BROADCAST)
    back = b.send("agr0", a.macs["agr0"])
    world.dispatch.run_for(1)
    assert b.seen == [("agr0", sent)]
    assert a.seen == [("agr0", back)]


def test_flows_are_spread_and_stay_in_order() -> None:
    world, a, b = pair()
    batch = [frame(b.macs["agr0"], bytes((2, 7, 0, 0, 0, number % 16)), bytes((number,))) for number in range(160)]
    a.stack.output(a.interface("agr0"), list(batch))
    world.dispatch.run_for(1)
    used = [a.interface(name).tx_frames for name in ("en0", "en1")]
    assert min(used) > 30
    for flow in range(16):
        marks = [one[14] for _, one in b.seen if one[11] == flow]
        assert marks == list(range(flow, 160, 16))


def test_a_lost_link_moves_its_traffic_at_once() -> None:
    world, a, b = pair()
    for machine in (a, b):
        machine.carrier("en0", False)
    for number in range(16):
        a.send("agr0", b.macs["agr0"], bytes((number,)))
    world.dispatch.run_for(1)
    assert len(b.seen) == 16
    assert a.interface("agr0").up
    for machine in (a, b):
        machine.carrier("en1", False)
    assert not a.interface("agr0").up
    for machine in (a, b):
        machine.carrier("en0", True)
    world.dispatch.run_for(5)
    assert a.interface("agr0").up


def test_ports_belong_to_the_aggregate() -> None:
    world, a, b = pair()
    a.send("en0", BROADCAST)
    assert a.interface("en0").drops == {"agr_port": 1}
    other = frame(bytes((2, 9, 9, 9, 9, 9)), a.macs["agr0"], b"x")
    a.stack.output(a.interface("agr0"), [other])
    world.dispatch.run_for(1)
    assert b.seen == []
    assert b.interface("agr0").drops == {Drop.OTHER_HOST: 1}
    b.stack.load("bridge", "add=agr0")
    a.stack.output(a.interface("agr0"), [other])
    world.dispatch.run_for(1)
    assert b.interface("agr0").drops == {Drop.OTHER_HOST: 1}


def test_without_a_partner_nothing_is_carried() -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    a.stack.load("agr", "agrport=en0")
    world.dispatch.run_for(100)
    assert not a.interface("agr0").up
    b.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert a.seen == []
    assert a.interface("en0").drops == {"not_collecting": 1}


def test_requests() -> None:
    world, a, b = pair(3)
    for machine in (a, b):
        machine.ask("agr0", "-agrport", interface="en2")
    sent = a.send("en2", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en2", sent)]
    a.ask("agr0", "agrport", interface="en2")
    a.ask("agr0", "lacp", value="slow")
    a.ask("agr0", "portpriority", interface="en0", value=7)
    facts = a.facts("agr0")
    assert facts["timeout"] == "slow"
    ports = facts["ports"]
    assert isinstance(ports, list)
    assert [(one["interface"], one["priority"]) for one in ports] == [("en0", 7), ("en1", 0x8000), ("en2", 0x8000)]
    with pytest.raises(ModuleError, match="port of agr0 already"):
        a.ask("agr0", "agrport", interface="en0")
    with pytest.raises(ModuleError, match="no port of agr0"):
        a.ask("agr0", "-agrport", interface="en9")
    with pytest.raises(ModuleError, match="aggregate itself"):
        a.ask("agr0", "agrport", interface="agr0")


def test_unloading_and_vanishing_ports_leave_nothing() -> None:
    world, a, b = pair()
    (en0,) = [one for one in a.stack.loaded if one.interface is not None and one.interface.name == "en0"]
    a.stack.unload(en0)
    world.dispatch.run_for(5)
    sent = a.send("agr0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("agr0", sent)]
    (agr,) = [one for one in a.stack.loaded if one.interface is not None and one.interface.name == "agr0"]
    a.stack.unload(agr)
    assert [(one.name, one.promiscuous) for one in a.stack.interfaces] == [("en1", 0)]
    world.dispatch.run_for(5)
    assert not b.interface("agr0").up


def test_hashes() -> None:
    one, two = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2))
    assert flow_hash(ipv4(one, two, (1, 2))) == flow_hash(ipv4(one, two, (1, 2)) + b"more")
    assert flow_hash(ipv4(one, two, (1, 2))) != flow_hash(ipv4(one, two, (1, 3)))
    assert flow_hash(ipv4(one, two, (1, 2), 0x2000)) == flow_hash(ipv4(one, two, (9, 9), 0x0010))
    assert flow_hash(ipv4(one, two, (1, 2), protocol=1)) == flow_hash(ipv4(one, two, (1, 3), protocol=1))
    ipv6 = Ethernet(two, one, 0x86DD).pack() + bytes((0x60, 0, 0, 0, 0, 4, 6, 64)) + bytes(32)
    assert flow_hash(ipv6 + b"\0\1\0\2") != flow_hash(ipv6 + b"\0\1\0\3")
    whole = ipv4(one, two, (1, 2))
    assert len({flow_hash(memoryview(whole)[:length]) for length in range(len(whole))}) > 2


@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract(wrapped: bool) -> None:
    world = World(2)
    drivers: list[Driver] = []
    for name in ("a", "b"):
        machine = world.machine(name, 0, 1)
        machine.stack.add_hook(Point.IN, lambda _, frames: frames, everything=True, name="all")
        drivers.append(AgrDriver(machine.context(), AgrOptions(agrport=("en0", "en1"))))
    world.dispatch.run_for(5)
    await check_driver(DriverPair(world, *(through_fault(world.dispatch, *drivers) if wrapped else drivers)))


def test_an_interface_has_one_owner() -> None:
    """A bridge's engine would carry past LACP, and a VLAN on a port would hear nothing."""
    machine = World(3).machine("m", 0, 1, 2)
    machine.stack.load("bridge", "add=en0")
    machine.stack.load("agr", "agrport=en1")
    assert [machine.interface(name).owner for name in ("en0", "en1", "en2")] == ["bridge0", "agr0", ""]
    with pytest.raises(ModuleError, match="en0 is in bridge0 already"):
        machine.ask("agr0", "agrport", interface="en0")
    with pytest.raises(ModuleError, match="en1 is in agr0 already"):
        machine.ask("bridge0", "add", interface="en1")
    with pytest.raises(ModuleError, match="en1 is a port of agr0"):
        machine.stack.load("vlan", "vlan=5,vlanif=en1")
    machine.stack.load("vlan", "vlan=5,vlanif=en2")
    with pytest.raises(ModuleError, match="vlan5 on it would hear nothing"):
        machine.ask("agr0", "agrport", interface="en2")
    machine.ask("agr0", "-agrport", interface="en1")
    machine.ask("bridge0", "add", interface="en1")
    machine.ask("bridge0", "add", interface="agr0")
    assert machine.interface("en1").owner == "bridge0"
    assert [one.promiscuous for one in machine.stack.interfaces if one.name == "en2"] == [0]
