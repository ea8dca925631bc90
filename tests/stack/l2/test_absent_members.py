"""Members are names: what a bridge, an aggregate and a VLAN do while the interface of one is away, and when it is back."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest

from stack.core.driver import Port
from stack.core.errors import ModuleError
from stack.core.module import Kind, Module
from stack.frame import Frame
from stack.l2.bridge import PORTS_MAX
from stack.l2.stations import STATIC_MAX
from stack.testing.machines import Machine, World
from stack.wire.ethernet import BROADCAST

STATION = "02:00:00:00:07:07"
GROUP = bytes.fromhex("01005e000005")


@attrs.frozen
class NoOptions:
    pass


class Deaf:
    """A driver that hears what is for its own station only."""

    name, mac, mtu, up = "en0", bytes.fromhex("020000000001"), 1500, True

    def start(self, port: Port) -> None:
        pass

    def accept(self, ethertypes: frozenset[int] | None) -> None:
        pass

    def transmit(self, frames: list[Frame]) -> None:
        pass

    def detach(self) -> None:
        pass

    def info(self) -> Mapping[str, str | int]:
        return {}


def go(machine: Machine, name: str) -> None:
    (loaded,) = [one for one in machine.stack.loaded if one.interface is not None and one.interface.name == name]
    machine.stack.unload(loaded)


def come(world: World, machine: Machine, name: str, hub: int) -> None:
    machine.stack.load(world.hubs[hub].module(), f"name={name},mac={machine.macs[name].hex(':')}")


def row(machine: Machine, upper: str, name: str, table: str = "members") -> Mapping[str, object]:
    rows = machine.facts(upper)[table]
    assert isinstance(rows, list)
    (found,) = [one for one in rows if one["interface"] == name]
    assert isinstance(found, dict)
    return found


def lasting(told: Mapping[str, object]) -> dict[str, object]:
    """What is set of a member."""
    tree = told.get("stp")
    of_tree = {key: tree[key] for key in ("priority", "cost", "guarded")} if isinstance(tree, dict) else None
    return {key: told[key] for key in ("number", "flags", "ifmaxaddr", "storm")} | {"stp": of_tree}


def test_a_member_of_a_bridge_comes_back_with_what_was_set() -> None:
    world = World(3)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1, 2), world.machine("b", 1)
    bridge.stack.load("bridge", "add=en0,add=en1,add=en2")
    ask = bridge.ask
    for command in ("stp", "edge"):
        ask("bridge0", command, interface="en1", on=True)
    ask("bridge0", "discover", interface="en1", on=False)
    for command, value in (("ifpathcost", 7), ("ifpriority", 0x40), ("storm", 77), ("ifmaxaddr", 3)):
        ask("bridge0", command, interface="en1", value=value)
    ask("bridge0", "static", interface="en1", address=STATION)
    world.dispatch.run_for(5)
    before = row(bridge, "bridge0", "en1")
    go(bridge, "en1")
    away = row(bridge, "bridge0", "en1")
    assert (away["present"], away["up"], away["number"], away["flags"]) == (False, False, 2, before["flags"])
    assert away["statics"] == [STATION]
    assert bridge.interface("bridge0").driver.info()["absent"] == "en1"
    come(world, bridge, "en1", 1)
    assert lasting(row(bridge, "bridge0", "en1")) == lasting(before)
    assert [(one["address"], one["interface"]) for one in bridge.facts("bridge0")["addresses"]] == [(STATION, "en1")]  # type: ignore[attr-defined]  # facts are for JSON
    world.dispatch.run_for(5)
    hello = a.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", hello)]


def test_a_new_member_takes_no_absent_ones_number() -> None:
    world = World(3)
    bridge = world.machine("bridge", 0, 1, 2)
    bridge.stack.load("bridge", "add=en0,add=en1")
    go(bridge, "en0")
    bridge.ask("bridge0", "add", interface="en2")
    assert row(bridge, "bridge0", "en2")["number"] == 3
    come(world, bridge, "en0", 0)
    assert row(bridge, "bridge0", "en0")["number"] == 1


def test_a_guard_that_has_struck_holds_over_an_absence() -> None:
    world = World(1)
    bridge, rogue = world.machine("bridge", 0), world.machine("rogue", 0)
    bridge.stack.load("bridge", "add=en0,stp")
    bridge.ask("bridge0", "guard", interface="en0", on=True)
    rogue.stack.load("bridge", "add=en0,stp")
    world.dispatch.run_for(5)
    assert lasting(row(bridge, "bridge0", "en0"))["stp"] == {"priority": 0x80, "cost": 20_000, "guarded": True}
    go(bridge, "en0")
    go(rogue, "bridge0")
    assert row(bridge, "bridge0", "en0")["guarded"] is True
    come(world, bridge, "en0", 0)
    world.dispatch.run_for(60)
    told = row(bridge, "bridge0", "en0")["stp"]
    assert isinstance(told, dict)
    assert (told["guarded"], told["state"]) == (True, "disabled")
    bridge.ask("bridge0", "guard", interface="en0", on=False)
    world.dispatch.run_for(60)
    told = row(bridge, "bridge0", "en0")["stp"]
    assert isinstance(told, dict)
    assert (told["guarded"], told["state"]) == (False, "forwarding")


def test_an_absent_member_can_be_deleted_and_nothing_else() -> None:
    world = World(2)
    bridge = world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,span=en1")
    go(bridge, "en0")
    go(bridge, "en1")
    with pytest.raises(ModuleError, match="absent member of bridge0, which can only be deleted"):
        bridge.ask("bridge0", "stp", interface="en0", on=True)
    with pytest.raises(ModuleError, match="a member, not a span port"):
        bridge.ask("bridge0", "delspan", interface="en0")
    bridge.ask("bridge0", "delspan", interface="en1")
    bridge.ask("bridge0", "delete", interface="en0")
    assert bridge.facts("bridge0")["members"] == []
    come(world, bridge, "en0", 0)
    assert bridge.interface("en0").owner == ""


def test_one_that_cannot_be_a_member_again_says_why(caplog: pytest.LogCaptureFixture) -> None:
    world = World(2)
    bridge = world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    go(bridge, "en1")
    bridge.stack.load("vlan", "name=en1,vlan=5,vlanif=en0")
    told = row(bridge, "bridge0", "en1")
    assert told["present"] is False
    assert "en1 and en0 are one link" in str(told["why"])
    assert "cannot be a member as it was: en1 and en0 are one link" in caplog.text
    go(bridge, "en1")
    assert row(bridge, "bridge0", "en1")["why"] == "there is no such interface just now"
    come(world, bridge, "en1", 1)
    assert row(bridge, "bridge0", "en1")["present"] is True


def test_absent_members_count() -> None:
    """What they hold is bounded with what others hold: places and static addresses."""
    world = World(1)
    bridge = world.machine("bridge", *([0] * (PORTS_MAX + 1)))
    bridge.stack.load("bridge", ",".join(f"add=en{number}" for number in range(PORTS_MAX)))
    for number in range(STATIC_MAX):
        bridge.ask("bridge0", "static", interface="en0", address=(0x020700000000 + number).to_bytes(6).hex(":"))
    go(bridge, "en0")
    with pytest.raises(ModuleError, match="members already"):
        bridge.ask("bridge0", "add", interface=f"en{PORTS_MAX}")
    with pytest.raises(ModuleError, match="as many static addresses"):
        bridge.ask("bridge0", "static", interface="en1", address=STATION)
    bridge.ask("bridge0", "deladdr", address="02:07:00:00:00:05")
    bridge.ask("bridge0", "static", interface="en1", address=STATION)
    bridge.ask("bridge0", "static", interface="en1", address="02:07:00:00:00:06")
    come(world, bridge, "en0", 0)
    addresses = {one["address"]: one["interface"] for one in bridge.facts("bridge0")["addresses"]}  # type: ignore[attr-defined]  # facts are for JSON
    assert len(addresses) == STATIC_MAX
    assert (addresses[STATION], addresses["02:07:00:00:00:06"], addresses["02:07:00:00:00:07"]) == ("en1", "en1", "en0")
    go(bridge, "en0")
    bridge.ask("bridge0", "flushall")
    assert row(bridge, "bridge0", "en0")["statics"] == []


def test_nothing_is_made_upon_the_bridge_in_an_absent_ones_name() -> None:
    world = World(2)
    bridge = world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1")
    go(bridge, "en1")
    with pytest.raises(ModuleError, match="go round for ever"):
        bridge.stack.load("vlan", "name=en1,vlan=5,vlanif=bridge0")


def test_a_port_of_an_aggregate_comes_back() -> None:
    world = World(2)
    a, b = world.machine("a", 0, 1), world.machine("b", 0, 1)
    for machine in (a, b):
        machine.stack.load("agr", "agrport=en0,agrport=en1")
        machine.macs["agr0"] = machine.interface("agr0").mac
    a.ask("agr0", "portpriority", interface="en0", value=0x1234)
    world.dispatch.run_for(5)
    go(a, "en0")
    away = row(a, "agr0", "en0", "ports")
    assert (away["present"], away["number"], away["priority"]) == (False, 1, 0x1234)
    with pytest.raises(ModuleError, match="absent port of agr0"):
        a.ask("agr0", "portpriority", interface="en0", value=1)
    come(world, a, "en0", 0)
    world.dispatch.run_for(8)
    back = row(a, "agr0", "en0", "ports")
    assert (back["present"], back["number"], back["priority"], back["mux"]) == (True, 1, 0x1234, "distributing")
    go(a, "en0")
    a.ask("agr0", "-agrport", interface="en0")
    come(world, a, "en0", 0)
    assert [one["interface"] for one in a.facts("agr0")["ports"]] == ["en1"]  # type: ignore[attr-defined]  # facts are for JSON
    assert a.interface("en0").owner == ""


def test_a_port_that_cannot_be_one_again_says_why() -> None:
    world = World(2)
    a = world.machine("a", 0, 1)
    a.stack.load("agr", "agrport=en0,agrport=en1")
    go(a, "en0")
    a.stack.load("agr", "name=en0")
    assert row(a, "agr0", "en0", "ports")["why"] == "en0 is an aggregate itself"


def test_a_vlan_asks_its_new_parent_for_what_it_had() -> None:
    """A bridge on a VLAN hears what is for other stations, and a group that was joined, over an absence of the parent."""
    world = World(2)
    a, b = world.machine("a", 0), world.machine("b", 0, 1)
    for machine in (a, b):
        machine.stack.load("vlan", "vlan=5,vlanif=en0")
        machine.macs["vlan5"] = machine.macs["en0"]
    b.stack.load("bridge", "add=vlan5,add=en1")
    kept = b.stack.join(b.interface("vlan5"), GROUP, "test")
    assert (b.interface("en0").promiscuous, b.interface("en0").groups) == (1, {GROUP: 1})
    go(b, "en0")
    other = b.stack.join(b.interface("vlan5"), bytes.fromhex("01005e000006"), "test")
    come(world, b, "en0", 0)
    assert b.interface("en0").promiscuous == 1
    assert b.interface("en0").groups == {GROUP: 1, bytes.fromhex("01005e000006"): 1}
    heard = world.machine("c", 1)
    heard.stack.promiscuous(heard.interface("en0"), "test")
    tap = heard.tap("en0")
    sent = a.send("vlan5", bytes.fromhex("020000009999"))
    world.dispatch.run_for(1)
    assert tap == [sent]
    other.revoke()
    assert b.interface("en0").groups == {GROUP: 1}
    kept.revoke()
    go(b, "bridge0")
    assert (b.interface("en0").promiscuous, b.interface("en0").groups) == (0, {})


def test_a_vlan_says_what_its_new_parent_refuses(caplog: pytest.LogCaptureFixture) -> None:
    world = World(2)
    b = world.machine("b", 0, 1)
    b.stack.load("vlan", "vlan=5,vlanif=en0")
    b.stack.load("bridge", "add=vlan5,add=en1")
    go(b, "en0")
    b.stack.load(Module("deaf", Kind.DRIVER, NoOptions, lambda context, options: Deaf()))
    assert "cannot receive frames for other stations" in str(b.facts("vlan5")["lacks"])
    assert "refuses what it did before" in caplog.text
    go(b, "en0")
    come(world, b, "en0", 0)
    assert b.facts("vlan5")["lacks"] == ""
