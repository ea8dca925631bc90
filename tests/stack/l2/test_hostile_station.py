"""What a hostile station on a bridge gets: docs/stack/layer2.md has the table. Honest stations a and b, and a third that is not."""

from __future__ import annotations

import pytest

from stack.core.errors import ModuleError
from stack.l2.flushes import AT_ONCE, FlushBound
from stack.l2.places import EVICTIONS_PER_SECOND
from stack.l2.stations import HOLD, MOVES_MAX, Learned, Stations
from stack.l2.stp.machine import BPDUS_AT_ONCE
from stack.testing.driver import TYPE, frame
from stack.testing.machines import Machine, World
from stack.wire.bpdu import GROUP, Config, Priority, Times, TopologyChange
from stack.wire.ethernet import BROADCAST
from stack.wire.llc import SAP_STP, pack_llc


def town(options: str = "") -> tuple[World, Machine, Machine, Machine, Machine]:
    """a on en0, b on en1, the hostile one on en2 of the bridge."""
    world = World(3)
    bridge = world.machine("bridge", 0, 1, 2)
    bridge.stack.load("bridge", f"add=en0,add=en1,add=en2{options}")
    a, b, bad = world.machine("a", 0), world.machine("b", 1), world.machine("bad", 2)
    bad.stack.promiscuous(bad.interface("en0"), "ears")
    return world, bridge, a, b, bad


def drops(bridge: Machine, name: str = "en2") -> dict[str, int]:
    members = bridge.facts("bridge0")["members"]
    assert isinstance(members, list)
    (found,) = [one["drops"] for one in members if one["interface"] == name]
    assert isinstance(found, dict)
    return found


def send(machine: Machine, *frames: bytes) -> None:
    machine.stack.output(machine.interface("en0"), list(frames))


def test_made_up_sources_take_no_room_from_others() -> None:
    """The table is full of them before the honest ones speak, and they go on."""
    world, bridge, a, b, bad = town()
    for start in range(0, 3000, 100):
        send(bad, *(frame(BROADCAST, b"\2\xee" + number.to_bytes(4, "big"), b"x") for number in range(start, start + 100)))
        world.dispatch.run_for(0.01)
    a.send("en0", BROADCAST)
    b.send("en0", BROADCAST)
    send(bad, *(frame(BROADCAST, b"\2\xef" + number.to_bytes(4, "big"), b"x") for number in range(200)))
    world.dispatch.run_for(1)
    wire, before = bad.tap("en0"), len(b.seen)
    for _ in range(50):
        a.send("en0", b.macs["en0"])
    world.dispatch.run_for(1)
    assert len(b.seen) - before == 50
    assert wire == [], "the hostile one hears nothing of what they say to each other"
    assert drops(bridge)["displaced"] > 0
    assert drops(bridge)["unlearned"] > 0
    assert "displaced" not in drops(bridge, "en0")


def test_what_evictions_cost_is_bounded() -> None:
    stations = Stations(100)
    found = [stations.learn(number.to_bytes(6, "big"), 1, 1.0) for number in range(10_000)]
    assert found.count(Learned.NEWS) == 100 + EVICTIONS_PER_SECOND
    assert found.count(Learned.NO_ROOM) == 10_000 - 100 - EVICTIONS_PER_SECOND
    assert len(stations) == 100


def test_a_port_with_a_bound_gives_up_its_own_stalest() -> None:
    stations = Stations(100)
    for number in range(5):
        stations.learn(bytes((2, 0, 0, 0, 0, number)), 1, float(number), most=3)
    stations.learn(bytes((2, 0, 0, 0, 0, 9)), 2, 5.0)
    assert sorted(address[5] for address, _ in stations) == [2, 3, 4, 9]
    stations.learn(bytes((2, 0, 0, 0, 0, 2)), 1, 6.0, most=3)
    stations.learn(bytes((2, 0, 0, 0, 0, 7)), 1, 6.0, most=3)
    assert sorted(address[5] for address, _ in stations) == [2, 4, 7, 9]


def test_a_stolen_address_is_held_at_home() -> None:
    world, bridge, a, b, bad = town()
    a.send("en0", BROADCAST)
    b.send("en0", BROADCAST)
    world.dispatch.run_for(70)
    theft = frame(b.macs["en0"], a.macs["en0"], b"theft")
    for _ in range(MOVES_MAX):
        send(bad, theft)
        a.send("en0", b.macs["en0"])
        world.dispatch.run_for(0.1)
    wire, before = bad.tap("en0"), len(a.seen)
    for _ in range(20):
        send(bad, theft)
        b.send("en0", a.macs["en0"])
        world.dispatch.run_for(0.1)
    assert len(a.seen) - before == 20
    assert wire == []
    assert drops(bridge)["flapping"] >= 20
    world.dispatch.run_for(HOLD)
    send(bad, theft)
    b.send("en0", a.macs["en0"])
    world.dispatch.run_for(0.1)
    assert len(wire) == 1, "a station that really moves is followed, later"


def bpdu(root: bytes, machine: Machine) -> bytes:
    priority = Priority(root, 0, root, 0x8001)
    return pack_llc(GROUP, machine.macs["en0"], SAP_STP, Config(priority, Times(0.0, 20.0, 2.0, 15.0)).pack())


def tree(bridge: Machine) -> dict[str, object]:
    found = bridge.facts("bridge0")["stp"]
    assert isinstance(found, dict)
    return found


def test_a_claimed_root_is_refused_by_a_root_guard() -> None:
    world, bridge, _, _, bad = town(",stp")
    world.dispatch.run_for(40)
    own = tree(bridge)["identifier"]
    bridge.ask("bridge0", "rootguard", interface="en2", on=True)
    send(bad, bpdu(bytes(2) + bad.macs["en0"], bad))
    world.dispatch.run_for(1)
    assert tree(bridge)["root"] == own
    bridge.ask("bridge0", "rootguard", interface="en2", on=False)
    send(bad, bpdu(bytes(2) + bad.macs["en0"], bad))
    world.dispatch.run_for(1)
    assert tree(bridge)["root"] != own, "without the guard, anybody is believed, as 802.1D says"


def test_a_flood_of_bpdus_is_cut() -> None:
    world, bridge, a, b, bad = town(",stp")
    world.dispatch.run_for(40)
    a.send("en0", BROADCAST)
    b.send("en0", BROADCAST)
    send(bad, *[bpdu(b"\xf0\0" + bad.macs["en0"], bad)] * (BPDUS_AT_ONCE + 100))
    before = len(b.seen)
    a.send("en0", b.macs["en0"])
    world.dispatch.run_for(1)
    assert len(b.seen) - before >= 1
    told = bridge.facts("bridge0")["drops"]
    assert isinstance(told, dict)
    assert told["stp_flood"] >= 100


def test_topology_changes_make_no_hub_of_the_bridge() -> None:
    """Ports with bridges behind them, since what is behind an edge is never forgotten."""
    world, bridge, a, b, bad = town()
    for name in ("en0", "en1", "en2"):
        bridge.ask("bridge0", "autoedge", interface=name, on=False)
        bridge.ask("bridge0", "stp", interface=name, on=True)
    world.dispatch.run_for(60)
    wire = bad.tap("en0")
    for _ in range(200):
        send(bad, pack_llc(GROUP, bad.macs["en0"], SAP_STP, TopologyChange().pack()))
        b.send("en0", BROADCAST)
        world.dispatch.run_for(0.05)
        a.send("en0", b.macs["en0"])
        world.dispatch.run_for(0.05)
    overheard = sum(one[:6] == b.macs["en0"] for one in wire)
    assert overheard < 40
    put_off = tree(bridge)["flushes_put_off"]
    assert isinstance(put_off, int)
    assert put_off > 0


def test_flushes_are_put_off_and_never_left_out() -> None:
    bound = FlushBound()
    assert [bound.due([1], 0.0) for _ in range(AT_ONCE + 3)] == [[1]] * AT_ONCE + [[]] * 3
    assert bound.put_off == 3
    assert bound.due([2], 0.0) == [2]
    due = bound.next_timeout()
    assert due == pytest.approx(2.0)
    assert bound.due([], 2.0) == [1]
    assert bound.next_timeout() is None


def test_double_tags_hop_into_no_vlan() -> None:
    world = World(1)
    bad, victim = world.machine("bad", 0), world.machine("victim", 0)
    victim.stack.load("vlan", "vlan=5,vlanif=en0")
    for outer, inner in ((0, 5), (5, 6), (7, 5), (5, 5)):
        send(bad, frame(BROADCAST, bad.macs["en0"], b"hop", TYPE, ((0x8100, outer), (0x8100, inner))))
        send(bad, frame(BROADCAST, bad.macs["en0"], b"hop", TYPE, ((0x88A8, outer), (0x8100, inner))))
    world.dispatch.run_for(1)
    assert victim.seen == []
    assert victim.interface("en0").drops == {"no_vlan": 2, "no_protocol": 4}
    assert victim.interface("vlan5").drops == {"no_vlan": 2}


def test_a_storm_is_bounded_by_kind() -> None:
    world, bridge, a, b, bad = town()
    a.send("en0", BROADCAST)
    b.send("en0", BROADCAST)
    world.dispatch.run_for(1)
    before = len(b.seen)
    for start in range(0, 20_000, 200):
        send(bad, *[frame(BROADCAST, bad.macs["en0"], b"storm")] * 200)
        world.dispatch.run_for(0.01)
        a.send("en0", b.macs["en0"], start.to_bytes(4, "big"))
    world.dispatch.run_for(0.1)
    got = [one for _, one in b.seen[before:]]
    assert sum(one[6:12] == a.macs["en0"] for one in got) == 100
    assert sum(one[6:12] == bad.macs["en0"] for one in got) <= 6_000
    assert drops(bridge)["storm"] >= 13_000


def test_a_forged_partner_joins_no_aggregate_that_has_one() -> None:
    """LACP proves nothing: whoever holds the cable can be its partner. A second system beside the true one gets no frame."""
    world = World(2)
    ours, peer, bad = world.machine("ours", 0, 1), world.machine("peer", 0), world.machine("bad", 1)
    for machine in (ours, peer, bad):
        machine.stack.load("agr", ",".join(f"agrport={name}" for name in machine.macs))
    world.dispatch.run_for(10)
    ports = ours.facts("agr0")["ports"]
    assert isinstance(ports, list)
    assert sorted(one["mux"] == "distributing" for one in ports) == [False, True]
    with pytest.raises(ModuleError):
        bad.ask("agr0", "agrport", interface="en0")
