"""A restarted bridge, aggregate, VLAN or driver has what was set at run time, over tries that fail, too."""

from __future__ import annotations

import pytest

from stack.core.loaded import Loaded
from stack.l2.bridge_driver import BridgeDriver
from stack.testing.machines import Machine, World
from tests.stack.l2.test_absent_members import STATION, come, go, lasting, row


def boom() -> None:
    raise RuntimeError("boom")


def restart(world: World, machine: Machine, name: str) -> None:
    """A callback of the driver of *name* raises."""
    number = loaded(machine, name).number
    loaded(machine, name).dispatch.call_soon(boom)
    world.dispatch.run_for(1.5)
    found = [one for one in machine.stack.loaded if one.interface is not None and one.interface.name == name]
    assert all(one.number != number for one in found)


def loaded(machine: Machine, name: str) -> Loaded:
    (found,) = [one for one in machine.stack.loaded if one.interface is not None and one.interface.name == name]
    return found


def changed_bridge(world: World, options: str = "restart=5") -> Machine:
    bridge, rogue = world.machine("bridge", 0, 1, 2), world.machine("rogue", 2)
    bridge.stack.load("bridge", f"add=en1,add=en0,{options}")
    ask = bridge.ask
    ask("bridge0", "add", interface="en2")
    for name in ("en0", "en2"):
        ask("bridge0", "stp", interface=name, on=True)
    ask("bridge0", "guard", interface="en2", on=True)
    ask("bridge0", "learn", interface="en0", on=False)
    ask("bridge0", "ifpathcost", interface="en0", value=9)
    for command, value in (("maxaddr", 77), ("timeout", 33), ("priority", 0x1000), ("fwddelay", 5)):
        ask("bridge0", command, value=value)
    ask("bridge0", "static", interface="en1", address=STATION)
    ask("bridge0", "ipf", on=True)
    rogue.stack.load("bridge", "add=en0,stp")
    world.dispatch.run_for(5)
    go(rogue, "bridge0")
    return bridge


def settings(bridge: Machine) -> dict[str, object]:
    told = bridge.facts("bridge0")
    tree = told["stp"]
    assert isinstance(tree, dict)
    return {
        **{key: told[key] for key in ("mac", "maxaddr", "timeout", "ipf")},
        **{key: tree[key] for key in ("priority", "fwddelay", "identifier", "protocol")},
        "static": [(one["address"], one["interface"]) for one in told["addresses"] if one["static"]],  # type: ignore[attr-defined]  # facts are for JSON
        **{name: lasting(row(bridge, "bridge0", name)) for name in ("en0", "en1", "en2")},
    }


def test_a_bridge() -> None:
    world = World(3)
    bridge = changed_bridge(world)
    before = settings(bridge)
    assert before["en2"]["stp"]["guarded"] is True  # type: ignore[index]  # facts are for JSON
    restart(world, bridge, "bridge0")
    assert settings(bridge) == before
    restart(world, bridge, "bridge0")
    world.dispatch.run_for(5)
    assert settings(bridge) == before


def test_a_bridge_with_an_absent_member() -> None:
    world = World(3)
    bridge = changed_bridge(world)
    before = settings(bridge)
    go(bridge, "en2")
    restart(world, bridge, "bridge0")
    assert row(bridge, "bridge0", "en2")["present"] is False
    come(world, bridge, "en2", 2)
    assert settings(bridge) == before


def test_it_is_held_over_tries_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3)
    bridge = changed_bridge(world)
    before = settings(bridge)
    tries: list[None] = []
    real = BridgeDriver.start

    def start(driver: BridgeDriver, port: object) -> None:
        tries.append(None)
        if len(tries) < 3:
            raise OSError(19, "not now")
        real(driver, port)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(BridgeDriver, "start", start)
    restart(world, bridge, "bridge0")
    assert bridge.stack.interface("bridge0") is None
    world.dispatch.run_for(10)
    assert len(tries) == 3
    assert settings(bridge) == before


def test_one_that_does_not_say_what_was_set_begins_with_its_options(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(3)
    bridge = changed_bridge(world)
    monkeypatch.setattr(BridgeDriver, "keep", lambda driver: boom())
    restart(world, bridge, "bridge0")
    assert bridge.facts("bridge0")["maxaddr"] == 100
    assert "does not say what was set, and begins with its options" in caplog.text
    world.dispatch.run_for(10)
    (restarts,) = [one.restarts for one in bridge.stack.loaded if one.restarts is not None]
    assert restarts.total == 1, "what raises in a restart asks for no other"


def test_an_aggregate() -> None:
    world = World(3)
    a, b = world.machine("a", 0, 1, 2), world.machine("b", 0, 1, 2)
    a.stack.load("agr", "agrport=en0,restart=5")
    b.stack.load("agr", "agrport=en0,agrport=en1,agrport=en2")
    a.ask("agr0", "agrport", interface="en2")
    a.ask("agr0", "agrport", interface="en1")
    a.ask("agr0", "-agrport", interface="en0")
    a.ask("agr0", "lacp", value="slow")
    a.ask("agr0", "portpriority", interface="en1", value=5)
    go(a, "en2")
    world.dispatch.run_for(5)

    def told() -> object:
        ports = [{key: one[key] for key in ("interface", "present", "number", "priority")} for one in a.facts("agr0")["ports"]]  # type: ignore[attr-defined]  # facts are for JSON
        return a.interface("agr0").mac, a.facts("agr0")["timeout"], ports

    before = told()
    restart(world, a, "agr0")
    assert told() == before
    world.dispatch.run_for(10)
    assert a.interface("agr0").up


def test_a_vlan() -> None:
    world = World(1)
    a = world.machine("a", 0)
    a.stack.load("vlan", "vlan=5,vlanif=en0,restart=1")
    a.ask("vlan5", "vlan", value=6)
    a.ask("vlan5", "vlanprio", value=3)
    restart(world, a, "vlan5")
    assert (a.facts("vlan5")["vlan"], a.facts("vlan5")["vlanprio"]) == (6, 3)


def test_an_interface_that_is_switched_off_stays_off() -> None:
    world = World(2)
    bridge = world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,add=en1,restart=2")
    bridge.interface("bridge0").limit_mtu(900)
    bridge.interface("bridge0").switch(False)
    restart(world, bridge, "bridge0")
    back = bridge.interface("bridge0")
    assert (back.enabled, back.up, back.mtu, back.driver.mtu) == (False, False, 900, 1500)
    back.switch(True)
    back.limit_mtu(1500)
    restart(world, bridge, "bridge0")
    back = bridge.interface("bridge0")
    assert (back.enabled, back.up, back.mtu) == (True, True, 1500)


def test_a_driver_with_a_wrapper_keeps_what_is_inside() -> None:
    world = World(3)
    bridge = world.machine("bridge", 0, 1)
    bridge.stack.load("bridge", "add=en0,restart=2", wrap=[("tracer", "")])
    bridge.ask("bridge0", "maxaddr", value=55)
    restart(world, bridge, "bridge0")
    assert bridge.facts("bridge0")["maxaddr"] == 55


def test_umount_and_mount_begin_with_the_options() -> None:
    world = World(3)
    bridge = changed_bridge(world)
    go(bridge, "bridge0")
    bridge.stack.load("bridge", "add=en1,restart=5")
    assert (bridge.facts("bridge0")["maxaddr"], bridge.interface("bridge0").driver.info()["members"]) == (100, "en1")
