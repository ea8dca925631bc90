"""`bridge0` in stacks on hubs, under virtual time: members, hooks, the spanning tree at work, and that nothing is left behind."""

from __future__ import annotations

import pytest

from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.l2.bridge_driver import BridgeDriver
from stack.l2.bridge_options import BridgeOptions
from stack.l2.forward.fastpath import FastPath
from stack.testing.driver import OTHER_TYPE, TYPE, check_driver, frame
from stack.testing.machines import DriverPair, Machine, World
from stack.testing.pair import through_fault
from stack.wire.ethernet import BROADCAST


def members(facts: dict[str, object]) -> dict[str, dict[str, object]]:
    found = facts["members"]
    assert isinstance(found, list)
    return {one["interface"]: one for one in found}


def test_two_networks_become_one() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    hello = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", hello)]
    assert bridge.seen == [("en0", hello)]
    a.stack.register_ethertype(OTHER_TYPE, a.received)
    answer = b.send("en0", a.macs["en0"], b"answer", OTHER_TYPE)
    world.dispatch.run_for(1)
    assert a.seen == [("en0", answer)]
    facts = bridge.facts("bridge0")
    assert members(facts)["en0"]["forwarded"] == 1


def test_members_are_stations_by_all_ports() -> None:
    """As NetBSD: what is for a member's address goes up there, and leaves where the station is."""
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    one = a.send("en0", bridge.macs["en1"])
    world.dispatch.run_for(1)
    assert bridge.seen == [("en1", one)]
    back = bridge.send("en1", a.macs["en0"])
    world.dispatch.run_for(1)
    assert a.seen == [("en0", back)]
    assert b.seen == []
    everywhere = bridge.send("en1", BROADCAST)
    world.dispatch.run_for(1)
    assert a.seen[1:] == b.seen == [("en0", everywhere)]


def test_the_bridge_itself_can_be_a_station() -> None:
    world = World(2)
    a, bridge = world.machine("a", 0), world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1,station,mac=02:00:00:00:00:77")
    mac = bytes.fromhex("020000000077")
    bridge.macs["bridge0"] = mac
    one = a.send("en0", mac)
    world.dispatch.run_for(1)
    assert bridge.seen == [("bridge0", one)]
    back = bridge.send("bridge0", a.macs["en0"])
    world.dispatch.run_for(1)
    assert a.seen == [("en0", back)]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract(wrapped: bool) -> None:
    """Of the bridge as a station, with members beside it that hear nothing of it."""
    world = World(3)
    drivers: list[Driver] = []
    for name, other in (("a", 1), ("b", 2)):
        context = world.machine(name, 0, other).context()
        drivers.append(BridgeDriver(context, BridgeOptions(add=("en0", "en1"), station=True), FastPath(context.stack, "none", {})))
    await check_driver(DriverPair(world, *(through_fault(world.dispatch, *drivers) if wrapped else drivers)))


def test_a_frame_is_forwarded_as_it_is() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    wire = b.tap("en0")
    tagged = frame(BROADCAST, a.macs["en0"], bytes(range(200)), TYPE, ((0x8100, 5),))
    a.stack.output(a.interface("en0"), [tagged])
    world.dispatch.run_for(1)
    assert wire == [tagged]


def test_a_loop_is_broken_and_mended() -> None:
    """Three bridges in a triangle, with a machine at two corners; a cable breaks."""
    world = World(5)
    a, b = world.machine("a", 3), world.machine("b", 4)
    corners = [world.machine("one", 0, 1, 3), world.machine("two", 1, 2, 4), world.machine("three", 2, 0)]
    for corner in corners:
        corner.stack.load("bridge", ",".join(f"add={one}" for one in corner.macs) + ",stp")
    world.dispatch.run_for(5)
    before = sum(hub.frames for hub in world.hubs)
    one = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", one)]
    assert sum(hub.frames for hub in world.hubs) - before < 15
    states = [one["stp"]["state"] for corner in corners for one in members(corner.facts("bridge0")).values()]  # type: ignore[index]  # facts are for JSON
    assert states.count("discarding") == 1
    for corner, interface in ((corners[0], "en1"), (corners[1], "en0")):
        corner.carrier(interface, False)
    world.dispatch.run_for(1)
    two = a.send("en0", BROADCAST, b"again")
    world.dispatch.run_for(1)
    assert b.seen[1:] == [("en0", two)]


def test_members_come_and_go() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    loaded = bridge.stack.load("bridge")
    assert not bridge.interface("bridge0").up
    bridge.ask("bridge0", "add", interface="en0")
    bridge.ask("bridge0", "add", interface="en1")
    assert bridge.interface("bridge0").up
    assert [one.promiscuous for one in bridge.stack.interfaces] == [1, 1, 0]
    one = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    bridge.ask("bridge0", "delete", interface="en1")
    a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", one)]
    bridge.ask("bridge0", "add", interface="en1")
    (en1,) = [one for one in bridge.stack.loaded if one.interface is not None and one.interface.name == "en1"]
    bridge.stack.unload(en1)
    assert {name: one["present"] for name, one in members(bridge.facts("bridge0")).items()} == {"en0": True, "en1": False}
    bridge.stack.unload(loaded)
    assert [one.promiscuous for one in bridge.stack.interfaces] == [0]


def test_a_bridge_that_was_switched_off_before_it_had_members_forwards_nothing() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge")
    bridge.interface("bridge0").switch(False)
    for name in ("en0", "en1"):
        bridge.ask("bridge0", "add", interface=name)
    a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == []
    ports = bridge.facts("bridge0")["engine"]
    assert isinstance(ports, dict)
    assert all("the bridge is switched off" in port["off"] for port in ports["ports"].values())
    bridge.interface("bridge0").switch(True)
    one = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", one)]


def test_lower_bounds_of_stations_hold_at_once() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    for machine in (a, b):
        sources = (bytes((2, 7, 0, 0, machine.macs["en0"][5], number)) for number in range(40))
        machine.stack.output(machine.interface("en0"), [frame(BROADCAST, source, b"x") for source in sources])
    world.dispatch.run_for(1)

    def known() -> tuple[int, int]:
        rows = bridge.facts("bridge0")["addresses"]
        assert isinstance(rows, list)
        found = [one["interface"] for one in rows]
        return found.count("en0"), found.count("en1")

    assert known() == (40, 40)
    bridge.ask("bridge0", "ifmaxaddr", interface="en0", value=30)
    assert known() == (30, 40)
    bridge.ask("bridge0", "maxaddr", value=10)
    assert known() == (5, 5)


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("add", {"interface": "en7"}, "no interface en7"),
        ("add", {"interface": "en0"}, "member of bridge0 already"),
        ("add", {"interface": "bridge0"}, "is a bridge itself"),
        ("add", {}, "interface is missing"),
        ("delete", {"interface": "en7"}, "no member of bridge0"),
        ("static", {"interface": "en0", "address": "01:00:00:00:00:01"}, "address of a group"),
        ("static", {"interface": "en0", "address": "x"}, "not a MAC address"),
        ("deladdr", {"address": "02:00:00:00:00:07"}, "does not know"),
        ("maxaddr", {"value": 0}, "from 1 to"),
        ("priority", {"value": 5}, "multiple of 4096"),
        ("ifpriority", {"interface": "en0", "value": 5}, "multiple of 16"),
        ("learn", {"interface": "en0", "on": 1}, "true or false"),
        ("dance", {}, "no request dance"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(command: str, arguments: dict[str, object], said: str) -> None:
    bridge = World(2).machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    before = bridge.facts("bridge0")
    with pytest.raises(ModuleError, match=said):
        bridge.ask("bridge0", command, **arguments)
    assert bridge.facts("bridge0") == before


def test_a_member_of_one_bridge_is_no_member_of_another() -> None:
    bridge = World(2).machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0")
    with pytest.raises(ModuleError, match="en0 is in bridge0 already"):
        bridge.stack.load("bridge", "name=bridge1,add=en1,add=en0")
    assert [one.promiscuous for one in bridge.stack.interfaces] == [1, 0, 0]
    bridge.stack.load("bridge", "name=bridge1,add=en1")


def test_requests_change_what_is_shown() -> None:
    bridge = World(2).machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1,stp")
    ask = bridge.ask
    ask("bridge0", "static", interface="en0", address="02:00:00:00:00:07")
    ask("bridge0", "maxaddr", value=7)
    ask("bridge0", "timeout", value=30)
    ask("bridge0", "priority", value=0x1000)
    ask("bridge0", "proto", value="stp")
    ask("bridge0", "fwddelay", value=4)
    ask("bridge0", "ifpathcost", interface="en0", value=7)
    ask("bridge0", "ifpriority", interface="en0", value=0x40)
    ask("bridge0", "learn", interface="en1", on=False)
    ask("bridge0", "guard", interface="en1", on=True)
    ask("bridge0", "stp", interface="en1", on=False)
    facts = bridge.facts("bridge0")
    assert facts["maxaddr"] == 7
    assert facts["addresses"] == [{"address": "02:00:00:00:00:07", "interface": "en0", "static": True, "idle": 0.0}]
    tree, en0, en1 = facts["stp"], members(facts)["en0"], members(facts)["en1"]
    assert isinstance(tree, dict)
    assert (tree["priority"], tree["protocol"], tree["fwddelay"]) == (0x1000, "stp", 4)
    assert isinstance(en0["stp"], dict)
    assert (en0["stp"]["cost"], en0["stp"]["priority"]) == (7, 0x40)
    assert en1["flags"] == ["discover"]
    ask("bridge0", "flush")
    assert bridge.facts("bridge0")["addresses"]
    ask("bridge0", "flushall")
    assert not bridge.facts("bridge0")["addresses"]


def test_stations_age_under_a_tree_that_talks() -> None:
    world = World(2)
    a, bridge = world.machine("a", 0), world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1,stp,timeout=60s")
    world.dispatch.run_for(5)
    a.send("en0", BROADCAST)
    world.dispatch.run_for(50)
    assert bridge.facts("bridge0")["addresses"]
    world.dispatch.run_for(30)
    assert not bridge.facts("bridge0")["addresses"]


@pytest.mark.parametrize(("timeout", "latest"), [(2, 3.0), (15, 22.5), (60, 70.0)])
def test_silent_stations_are_looked_for_as_often_as_their_time_asks(timeout: int, latest: float) -> None:
    world = World(2)
    a, bridge = world.machine("a", 0), world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", f"add=en0,add=en1,timeout={timeout}s")
    a.send("en0", BROADCAST)
    world.dispatch.run_for(0.1)
    began = world.dispatch.now()
    assert len(known(bridge)) == 1
    assert world.dispatch.run_until(lambda: not known(bridge), limit=100.0)
    assert timeout - 0.1 <= world.dispatch.now() - began <= latest


def known(bridge: Machine) -> list[object]:
    addresses = bridge.facts("bridge0")["addresses"]
    assert isinstance(addresses, list)
    return list(addresses)


def test_broken_bpdus_are_counted() -> None:
    world = World(2)
    a, bridge = world.machine("a", 0), world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1,stp")
    for length in (14, 17, 20, 40):
        broken = (bytes.fromhex("0180c2000000") + a.macs["en0"] + bytes.fromhex("0026424203") + bytes(60))[:length]
        a.stack.output(a.interface("en0"), [broken])
    world.dispatch.run_for(1)
    assert bridge.facts("bridge0")["drops"] == {"bad_bpdu": 4}


def test_a_bridge_that_is_switched_off_forwards_nothing() -> None:
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1,stp")
    world.dispatch.run_for(5)
    bridge.interface("bridge0").switch(False)
    one = a.send("en0", BROADCAST)
    back = bridge.send("en1", BROADCAST)
    world.dispatch.run_for(1)
    assert bridge.seen == [("en0", one)]
    assert b.seen == [("en0", back)]
    assert a.seen == []
    assert {one["stp"]["state"] for one in members(bridge.facts("bridge0")).values()} == {"disabled"}  # type: ignore[index]  # facts are for JSON
    bridge.interface("bridge0").switch(True)
    world.dispatch.run_for(5)
    two = a.send("en0", BROADCAST, b"again")
    world.dispatch.run_for(1)
    assert b.seen[1:] == [("en0", two)]
