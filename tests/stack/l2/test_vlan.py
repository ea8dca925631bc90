"""VLAN interfaces on hubs under virtual time: tags on and off, priorities, MTU, and whose frames are whose."""

from __future__ import annotations

import pytest

from stack.core import vlans
from stack.core.driver import Driver
from stack.core.errors import ModuleError
from stack.core.hooks import Point
from stack.core.statistics import Drop
from stack.frame import Frame
from stack.l2.vlan import VlanDriver, VlanOptions
from stack.testing.driver import TYPE, check_driver, frame
from stack.testing.machines import DriverPair, Machine, World
from stack.testing.pair import through_fault
from stack.wire.ethernet import BROADCAST
from stack.wire.vlan import vlan_of


def pair(options: str = "vlan=5,vlanif=en0") -> tuple[World, Machine, Machine]:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    for machine in (a, b):
        machine.stack.load("vlan", options)
        machine.macs["vlan5"] = machine.macs["en0"]
    return world, a, b


def test_what_enters_on_one_side_leaves_on_the_other() -> None:
    world, a, b = pair()
    sent = a.send("vlan5", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("vlan5", sent)]
    plain = a.send("en0", BROADCAST, b"plain")
    world.dispatch.run_for(1)
    assert b.seen[1:] == [("en0", plain)]


def test_the_tag_on_the_wire() -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    a.stack.load("vlan", "vlan=5,vlanif=en0,prio=6")
    a.macs["vlan5"] = a.macs["en0"]
    wire = b.tap("en0")
    a.send("vlan5", BROADCAST, b"x")
    a.ask("vlan5", "vlanprio", value=1)
    a.send("vlan5", BROADCAST, b"x")
    world.dispatch.run_for(1)
    assert [one[12:16].hex() for one in wire] == ["8100c005", "81002005"]


def test_frames_of_other_vlans_are_not_ours() -> None:
    world, a, b = pair()
    b.stack.load("vlan", "vlan=6,vlanif=en0")
    for vlan, interface in ((5, "vlan5"), (6, "vlan6"), (7, None), (0, "en0")):
        one = frame(BROADCAST, a.macs["en0"], b"x", TYPE, ((0x8100, vlan),))
        a.stack.output(a.interface("en0"), [one])
        world.dispatch.run_for(1)
        assert [name for name, _ in b.seen] == ([interface] if interface else [])
        b.seen.clear()
    assert b.interface("en0").drops == {"no_vlan": 1}


def test_a_batch_is_sorted_out_in_order() -> None:
    world, a, b = pair()
    batch = [frame(BROADCAST, a.macs["en0"], bytes((number,)), TYPE, ((0x8100, 5),) if number % 2 else ()) for number in range(20)]
    a.stack.output(a.interface("en0"), list(batch))
    world.dispatch.run_for(1)
    assert [one[14] for name, one in b.seen if name == "vlan5"] == list(range(1, 20, 2))
    assert [one[14] for name, one in b.seen if name == "en0"] == list(range(0, 20, 2))


def test_two_hundred_vlans_are_one_look_at_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    ids = range(1, 201)
    for vlan in ids:
        b.stack.load("vlan", f"vlan={vlan},vlanif=en0")
    assert [(entry.name, sorted(entry.interfaces or ())) for entry, _ in b.stack.hooks()] == [("VLANs of en0", ["en0"])]
    looked: list[Frame] = []

    def look(one: Frame) -> int:
        looked.append(one)
        return vlan_of(one)

    monkeypatch.setattr(vlans, "vlan_of", look)
    untagged = frame(BROADCAST, a.macs["en0"], b"", TYPE)
    a.stack.output(a.interface("en0"), [untagged] * 100)
    world.dispatch.run_for(1)
    assert b.seen == [("en0", untagged)] * 100
    assert not looked
    b.seen.clear()
    batch = [frame(BROADCAST, a.macs["en0"], bytes((vlan,)), TYPE, ((0x8100, vlan),)) for vlan in (*ids, 201, *reversed(ids))]
    a.stack.output(a.interface("en0"), [*batch, untagged])
    world.dispatch.run_for(1)
    assert len(looked) == len(batch) + 1
    plain = [(f"vlan{vlan}", frame(BROADCAST, a.macs["en0"], bytes((vlan,)), TYPE)) for vlan in ids]
    assert sorted(b.seen) == sorted([("en0", untagged), *plain, *plain])


def test_a_vlan_that_goes_while_a_batch_is_given_out() -> None:
    world, a, b = pair()
    seen: list[str] = []
    registrations = [b.stack.register_vlan("en0", vlan, lambda _, frames: other(), f"test{vlan}") for vlan in (6, 7)]

    def other() -> None:
        seen.append("one")
        for registration in registrations:
            registration.revoke()

    a.stack.output(a.interface("en0"), [frame(BROADCAST, a.macs["en0"], b"x", TYPE, ((0x8100, vlan),)) for vlan in (7, 6, 5)])
    world.dispatch.run_for(1)
    assert seen == ["one"]
    assert b.interface("en0").drops == {Drop.NO_VLAN: 1}
    assert [name for name, _ in b.seen] == ["vlan5"]


def test_another_id_while_it_runs() -> None:
    world, a, b = pair()
    b.stack.load("vlan", "vlan=6,vlanif=en0")
    with pytest.raises(ModuleError, match="VLAN 6 of en0 is vlan6 already"):
        b.ask("vlan5", "vlan", value=6)
    b.ask("vlan5", "vlan", value=5)
    b.ask("vlan5", "vlan", value=7)
    for vlan in (5, 6, 7):
        a.stack.output(a.interface("en0"), [frame(BROADCAST, a.macs["en0"], b"x", TYPE, ((0x8100, vlan),))])
    world.dispatch.run_for(1)
    assert [name for name, _ in b.seen] == ["vlan6", "vlan5"]
    b.ask("vlan6", "vlan", value=5)


def test_vlans_in_vlans() -> None:
    world, a, b = pair()
    for machine in (a, b):
        machine.stack.load("vlan", "name=inner,vlan=7,vlanif=vlan5")
        machine.macs["inner"] = machine.macs["en0"]
    assert a.interface("inner").mtu == 1496
    sent = a.send("inner", BROADCAST)
    whole = a.send("inner", BROADCAST, bytes(1496))
    world.dispatch.run_for(1)
    assert b.seen == [("inner", sent), ("inner", whole)]


def test_the_mtu_and_what_is_longer() -> None:
    world, a, b = pair()
    assert a.interface("vlan5").mtu == 1500
    whole = a.send("vlan5", BROADCAST, bytes(1500))
    a.send("vlan5", BROADCAST, bytes(1501))
    world.dispatch.run_for(1)
    assert b.seen == [("vlan5", whole)]
    assert a.interface("vlan5").drops == {Drop.TOO_LONG: 1}
    with pytest.raises(ModuleError, match="MTU"):
        a.stack.load("vlan", "vlan=6,vlanif=en0,mtu=1501")


def test_the_parent_is_followed() -> None:
    world, a, b = pair()
    a.carrier("en0", False)
    assert not a.interface("vlan5").up
    a.interface("en0").deliver([frame(BROADCAST, bytes((2, 9, 9, 9, 9, 9)), b"late", TYPE, ((0x8100, 5),))])
    assert a.interface("vlan5").drops == {Drop.LINK_DOWN: 1}
    a.carrier("en0", True)
    assert a.interface("vlan5").up
    (en0,) = [one for one in a.stack.loaded if one.interface is not None and one.interface.name == "en0"]
    a.stack.unload(en0)
    assert not a.interface("vlan5").up
    a.send("vlan5", BROADCAST)
    mac = a.macs["en0"]
    a.stack.load(world.hubs[0].module(), f"name=en0,mac={mac.hex(':')}")
    assert a.interface("vlan5").up
    sent = a.send("vlan5", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("vlan5", sent)]


def test_a_promiscuous_parent_does_not_make_the_vlan_one() -> None:
    world, a, b = pair()
    other = bytes((2, 9, 9, 9, 9, 9))
    registration = b.stack.promiscuous(b.interface("en0"), "test")
    a.send("vlan5", other)
    world.dispatch.run_for(1)
    assert b.seen == []
    assert b.interface("vlan5").drops == {Drop.OTHER_HOST: 1}
    registration.revoke()
    b.stack.load("bridge", "add=vlan5")
    assert b.interface("en0").promiscuous == 1
    a.send("vlan5", other)
    world.dispatch.run_for(1)
    assert b.interface("vlan5").drops == {Drop.OTHER_HOST: 1}


def test_a_bridge_between_vlans() -> None:
    """Stations of VLAN 5 of one cable and of VLAN 6 of another are one network."""
    world = World(2)
    a, bridge, b = world.machine("a", 0), world.machine("bridge", 0, 1), world.machine("b", 1)
    a.stack.load("vlan", "vlan=5,vlanif=en0")
    b.stack.load("vlan", "vlan=6,vlanif=en0")
    bridge.stack.load("vlan", "vlan=5,vlanif=en0")
    bridge.stack.load("vlan", "vlan=6,vlanif=en1")
    bridge.stack.load("bridge", "add=vlan5,add=vlan6")
    a.macs["vlan5"] = a.macs["en0"]
    sent = a.send("vlan5", BROADCAST)
    world.dispatch.run_for(1)
    assert b.seen == [("vlan6", sent)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("vlan=5,vlanif=en9", "no interface en9"),
        ("vlan=5,vlanif=en0,name=again", "vlan5 already"),
        ("vlan=0,vlanif=en0", "vlan"),
        ("vlan=4095,vlanif=en0", "vlan"),
        ("vlan=7,vlanif=en0,prio=8", "prio"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(options: str, said: str) -> None:
    _, a, _ = pair()
    with pytest.raises(ModuleError, match=said):
        a.stack.load("vlan", options)


def test_unloading_leaves_nothing() -> None:
    _, a, _ = pair()
    (vlan,) = [one for one in a.stack.loaded if one.interface is not None and one.interface.name == "vlan5"]
    a.stack.unload(vlan)
    assert [one.name for one in a.stack.interfaces] == ["en0"]
    a.stack.load("vlan", "vlan=5,vlanif=en0")


@pytest.mark.parametrize("wrapped", [False, True])
async def test_contract(wrapped: bool) -> None:
    world = World(1)
    a, b = world.machine("a", 0), world.machine("b", 0)
    drivers: list[Driver] = []
    for machine in (a, b):
        # The drivers' port is the test's, not an interface: what they need of a stack is the parent's.
        machine.stack.add_hook(Point.IN, lambda _, frames: frames, everything=True, name="all")
        drivers.append(VlanDriver(machine.context(), VlanOptions(5, "en0")))
    await check_driver(DriverPair(world, *(through_fault(world.dispatch, *drivers) if wrapped else drivers)))


def test_a_tap_on_a_vlan_sees_every_ethertype() -> None:
    """The driver below filters: what stands on it counts."""
    world, a, b = pair()
    seen: list[int] = []

    def tap(interface: object, frames: list[bytes]) -> list[bytes]:
        seen.append(len(frames))
        return frames

    b.stack.add_hook(Point.IN, tap, everything=True, interfaces=("vlan5",))  # type: ignore[arg-type]  # frames only read
    a.send("vlan5", BROADCAST, b"x", 0x0800)
    world.dispatch.run_for(1)
    assert seen == [1]


def test_what_would_go_round_in_itself_is_refused() -> None:
    world = World(2)
    machine = world.machine("a", 0, 1)
    machine.stack.load("vlan", "vlan=5,vlanif=en0")
    machine.stack.load("bridge", "add=en0,station")
    with pytest.raises(ModuleError, match="vlan5 and en0 are one link"):
        machine.ask("bridge0", "add", interface="vlan5")
    machine.stack.load("vlan", "name=up,vlan=6,vlanif=bridge0")
    with pytest.raises(ModuleError, match="up stands on bridge0"):
        machine.ask("bridge0", "add", interface="up")
    (gone,) = [one for one in machine.stack.loaded if one.interface is not None and one.interface.name == "vlan5"]
    machine.stack.load("vlan", "name=over,vlan=7,vlanif=vlan5")
    machine.stack.unload(gone)
    with pytest.raises(ModuleError, match="over stands on vlan5"):
        machine.stack.load("vlan", "name=vlan5,vlan=5,vlanif=over")
