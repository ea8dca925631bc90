"""Pseudo-interfaces with members come and go under traffic, one above the other, and leave nothing."""

from __future__ import annotations

import gc

import pytest

from stack.core.hooks import Point
from stack.core.ifnet import Interface
from stack.core.loaded import Loaded
from stack.core.module import Kind
from stack.frame import Frame
from stack.l2.aggregate import AgrDriver
from stack.l2.bridge_driver import BridgeDriver
from stack.l2.macfilter import MacFilterModule
from stack.l2.vlan import VlanDriver
from stack.testing.machines import Machine, World
from stack.wire.ethernet import BROADCAST

TIMES = 1000
TOWERS = {
    "bridge": [("bridge", "add=en0,add=en1,span=en2,stp")],
    "vlan": [("vlan", "vlan=5,vlanif=en0"), ("vlan", "vlan=6,vlanif=vlan5")],
    "agr": [("agr", "agrport=en0,agrport=en1")],
    "macfilter": [("stack.l2.macfilter", "rule=block in on en0 src 02:00:00:00:00:01")],
    "all": [
        ("agr", "agrport=en0,agrport=en1"),
        ("vlan", "vlan=5,vlanif=agr0"),
        ("bridge", "add=vlan5,add=en2,stp"),
        ("stack.l2.macfilter", ""),
    ],
}


def state(machine: Machine) -> tuple[object, ...]:
    stack = machine.stack
    return (
        [(one.name, one.promiscuous) for one in stack.interfaces],
        [entry.name for entry, _ in stack.hooks()],
        [one.module.name for one in stack.loaded],
        dict(stack.failures()),
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_nothing_is_left(tower: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(3)
    machine, other = world.machine("n", 0, 1, 2), world.machine("far", 0, 1, 2)
    before = state(machine)
    for number in range(TIMES):
        made: list[Loaded] = [
            machine.stack.load(module, options, kind=Kind.PROTOCOL if "." in module else Kind.DRIVER) for module, options in TOWERS[tower]
        ]
        for name in ("en0", "en1", "en2"):
            other.send(name, BROADCAST)
        for interface in machine.stack.interfaces:
            machine.macs[interface.name] = interface.mac
            machine.send(interface.name, BROADCAST)
        world.dispatch.run_for(5.0 if number == 0 else 0.01)
        # In any order: what lies above must bear that its ground goes.
        for loaded in made if number % 2 else reversed(made):
            machine.stack.unload(loaded)
        machine.seen.clear()
        other.seen.clear()
    assert state(machine) == before
    assert "behind" not in caplog.text
    del made, loaded, interface
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, BridgeDriver | VlanDriver | AgrDriver | MacFilterModule)]
    assert not left


@pytest.mark.parametrize("tower", ["stp", "lacp"])
def test_a_member_goes_while_its_bridge_or_aggregate_speaks(tower: str) -> None:
    """What is sent to one member is the reason that another one goes."""
    world = World(2)
    machine = world.machine("a", 0, 1)
    module, options = {"stp": ("bridge", "add=en0,add=en1,stp"), "lacp": ("agr", "agrport=en0,agrport=en1")}[tower]
    machine.stack.load(module, options)
    (leaving,) = [one for one in machine.stack.loaded if one.interface is not None and one.interface.name == "en1"]

    def unload(interface: Interface, frames: list[Frame]) -> list[Frame]:
        if leaving in machine.stack.loaded:
            machine.stack.unload(leaving)
        return frames

    machine.stack.add_hook(Point.OUT, unload, name="unload", interfaces=("en0",))
    world.dispatch.run_for(40)
    assert leaving not in machine.stack.loaded
    assert machine.stack.failures() == {}
    sent = machine.interface("en0").tx_frames
    world.dispatch.run_for(40)
    assert machine.interface("en0").tx_frames > sent, "it goes on to speak"
