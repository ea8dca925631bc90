"""Spanning trees in virtual time: who is the root, how fast a failure is over, and that no frame ever circles."""

from __future__ import annotations

import os
import random

import pytest

from resmgr.errors import Misuse
from stack.l2.stp.machine import PORTS_MAX
from stack.l2.stp.settings import PortSettings, Protocol, TreeSettings
from stack.testing.bridges import BridgedNetwork, Cable
from stack.wire.bpdu import Config, Priority, Times, bridge_id

RSTP = TreeSettings()
STP = TreeSettings(Protocol.STP)


def ring(count: int, settings: TreeSettings, seed: int = 0) -> tuple[BridgedNetwork, list[Cable]]:
    network = BridgedNetwork([settings] * count, seed)
    return network, [network.join(one, (one + 1) % count) for one in range(count)]


def still(network: BridgedNetwork) -> bool:
    """All reach each other, and no root is believed in that is not there."""
    network.check()
    return network.connected() and all(tree.root.root in {other.identifier for other in network.bridges} for tree in network.bridges)


def test_the_lowest_identifier_is_the_root_of_all() -> None:
    network, _ = ring(4, RSTP)
    network.run_for(10)
    assert {tree.root.root for tree in network.bridges} == {network.bridges[0].identifier}
    assert network.bridges[0].root_port is None
    assert [tree.root.cost for tree in network.bridges] == [0, 20_000, 40_000, 20_000]


def test_a_ring_has_one_blocked_port() -> None:
    network, _ = ring(4, RSTP)
    network.run_for(10)
    views = [(number, port, network.bridges[number].view(port)) for number in range(4) for port in (1, 2)]
    assert [(number, port) for number, port, view in views if view.state != "forwarding"] == [(2, 2)]
    assert network.bridges[2].view(2).role == "alternate"


def test_rapid_convergence_needs_no_timer() -> None:
    network, cables = ring(5, RSTP)
    assert network.run_for(1.0, lambda: still(network))
    started = network.now - 1000.0
    network.run_for(30)
    network.set_up(cables[0], False)
    begin = network.now
    assert network.run_for(1.0, lambda: still(network))
    assert started < 0.1
    assert network.now - begin < 0.1


def test_without_rapidity_ports_wait() -> None:
    network, cables = ring(4, STP)
    network.run_for(29)
    assert not network.connected()
    assert network.run_for(10, lambda: still(network))
    network.run_for(30)
    network.set_up(cables[0], False)
    begin = network.now
    network.run_for(25)
    assert not network.connected()
    assert network.run_for(20, lambda: still(network))
    assert 25 < network.now - begin < 45


def test_a_bridge_with_a_better_priority_takes_over() -> None:
    network, _ = ring(3, RSTP)
    network.run_for(10)
    network.bridges[2].configure(TreeSettings(priority=0x1000), network.now)
    network.run_for(1)
    assert {tree.root.root for tree in network.bridges} == {network.bridges[2].identifier}
    assert still(network)


def test_a_root_that_dies_silently_is_missed_in_the_end() -> None:
    network, cables = ring(4, RSTP)
    network.run_for(10)
    dead = network.bridges[0].identifier
    for cable in (cables[0], cables[3]):
        # The far ends do not notice: a converter lies between.
        for bridge, port in cable.plugs:
            if bridge == 0:
                network.bridges[0].set_enabled(port, False, network.now)
    begin = network.now
    assert network.run_for(30, lambda: all(tree.root.root != dead for tree in network.bridges[1:]))
    assert 4 <= network.now - begin <= 20
    network.run_for(1)
    assert all(network.bridges[number].forwarding(2) for number in (1, 2))


def test_costs_choose_the_way() -> None:
    network = BridgedNetwork([RSTP] * 2)
    network.join(0, 1, port=PortSettings(cost=20_000))
    network.join(0, 1, port=PortSettings(cost=2_000))
    network.run_for(5)
    assert [network.bridges[1].view(port).role for port in (1, 2)] == ["alternate", "root"]
    assert network.bridges[1].root.cost == 2_000


def test_a_cable_to_oneself_is_a_backup() -> None:
    network = BridgedNetwork([RSTP])
    network.join(0, 0)
    network.run_for(60)
    assert [network.bridges[0].view(port).role for port in (1, 2)] == ["designated", "backup"]
    assert [network.bridges[0].forwarding(port) for port in (1, 2)] == [True, False]


def test_a_port_without_a_bridge_becomes_an_edge() -> None:
    network = BridgedNetwork([RSTP])
    network.bridges[0].add(1, PortSettings(), True, network.now)
    network.bridges[0].add(2, PortSettings(edge=True), True, network.now)
    assert [network.bridges[0].forwarding(port) for port in (1, 2)] == [False, True]
    network.run_for(3.1)
    assert network.bridges[0].forwarding(1)
    assert network.bridges[0].view(1).edge
    assert network.bridges[0].topology_changes == 0


def test_a_new_cable_is_no_loop_although_both_ends_are_edges() -> None:
    """The worst case for a spanning tree: both ports forward already. The first BPDU ends it."""
    network = BridgedNetwork([RSTP] * 2)
    network.join(0, 1)
    network.run_for(10)
    second = network.join(0, 1)
    network.run_for(10)
    network.set_up(second, False)
    network.run_for(10)
    network.set_up(second, True)
    network.run_for(10)
    assert still(network)
    assert not network.bridges[1].forwarding(2)


def test_old_and_rapid_bridges_form_one_tree() -> None:
    network = BridgedNetwork([RSTP, STP, RSTP, STP])
    for one in range(4):
        network.join(one, (one + 1) % 4)
    assert network.run_for(60, lambda: still(network))
    network.run_for(40)
    assert network.bridges[0].view(1).protocol == "stp"
    cable = network.cables[0]
    network.set_up(cable, False)
    assert network.run_for(80, lambda: still(network))


def test_topology_changes_are_heard_of_everywhere() -> None:
    for settings in (RSTP, STP):
        network, cables = ring(4, settings)
        network.run_for(120)
        for tree in network.bridges:
            tree.flushed()
        network.set_up(cables[1], False)
        network.run_for(60)
        assert all(tree.flushed() for tree in network.bridges), settings.protocol


def test_a_guarded_port_goes_out_of_service() -> None:
    network = BridgedNetwork([RSTP] * 2)
    network.bridges[0].add(1, PortSettings(edge=True, guard=True), True, network.now)
    network.bridges[1].add(1, PortSettings(), True, network.now)
    network.cables.append(Cable([(0, 1), (1, 1)]))
    assert network.bridges[0].forwarding(1)
    network.run_for(5)
    view = network.bridges[0].view(1)
    assert (view.guarded, view.state) == (True, "disabled")
    for up in (False, True):
        network.bridges[0].set_enabled(1, up, network.now)
    network.run_for(5)
    view = network.bridges[0].view(1)
    assert (view.guarded, view.state) == (True, "disabled"), "the plug was pulled and put back, and nobody was told that this may be"
    network.bridges[0].configure_port(1, PortSettings(), network.now)
    network.run_for(5)
    assert network.bridges[0].forwarding(1)


def test_a_restricted_port_never_leads_to_the_root() -> None:
    network = BridgedNetwork([RSTP, TreeSettings(priority=0)])
    network.bridges[0].add(1, PortSettings(restricted_role=True), True, network.now)
    network.bridges[1].add(1, PortSettings(), True, network.now)
    network.cables.append(Cable([(0, 1), (1, 1)]))
    network.run_for(10)
    assert network.bridges[0].root_port is None
    assert network.bridges[0].view(1).role == "alternate"
    assert not network.bridges[0].forwarding(1)


def test_a_fibre_that_breaks_one_way_makes_no_loop() -> None:
    """Bridge 2 hears nothing more from bridge 1 and would forward towards it; bridge 1 hears that, and stops (*dispute*)."""
    network = BridgedNetwork([RSTP] * 3)
    cables = [network.join(one, (one + 1) % 3, port=PortSettings(auto_edge=False)) for one in range(3)]
    network.run_for(10)
    assert network.bridges[2].view(1).role == "alternate"
    cables[1].deaf.add((2, 1))
    network.run_for(60)
    assert network.bridges[2].forwarding(1)
    assert not network.bridges[1].forwarding(2)
    assert network.connected()
    cables[1].deaf.clear()
    network.run_for(60)
    assert network.bridges[2].view(1).role == "alternate"
    assert network.bridges[1].forwarding(2)


def bpdu(root: int, bridge: int = 0x77, **changes: object) -> Config:
    """What a stranger sends."""
    identifier = bridge_id(root, bytes((2, 0, 0, 0, 0, bridge)))
    given: dict[str, object] = {"times": Times(0, 20, 2, 15), "rapid": True, **changes}
    return Config(Priority(identifier, 0, identifier, 0x8001), **given)  # type: ignore[arg-type]  # its fields


def test_a_flood_of_better_roots_is_bounded() -> None:
    network, _ = ring(3, RSTP)
    network.run_for(10)
    tree = network.bridges[0]
    tree.add(7, PortSettings(), True, network.now)
    for number in range(5000):
        tree.receive(7, bpdu(0x1000, 250 - number % 250), network.now + number / 5000)
    assert tree.drops["stp_flood"] > 4800
    assert len(tree.transmit()) < 60


def test_what_makes_no_sense_is_dropped_or_read_as_what_may_be() -> None:
    network = BridgedNetwork([RSTP])
    tree = network.bridges[0]
    tree.add(1, PortSettings(), True, network.now)
    own = Config(Priority(tree.identifier, 0, tree.identifier, 0x8001), Times(0, 20, 2, 15), rapid=True)
    tree.receive(1, own, network.now)
    tree.receive(1, bpdu(0x1000, times=Times(20, 20, 2, 15), rapid=False), network.now)
    assert tree.drops == {"stp_own": 1, "stp_too_old": 1}
    tree.receive(1, bpdu(0x1000, times=Times(0, 0, 0, 0)), network.now)
    told = tree.view(1)
    assert told.role == "root"
    network.run_for(2.9)
    assert tree.root_port == 1
    network.run_for(0.2)
    assert tree.root_port is None


def test_numbers_of_ports() -> None:
    tree = BridgedNetwork([RSTP]).bridges[0]
    tree.add(1, PortSettings(), True, 1000.0)
    for number in (0, 1, PORTS_MAX + 1):
        with pytest.raises(Misuse):
            tree.add(number, PortSettings(), True, 1000.0)


SEEDS = range(int(os.environ.get("SEEDS", "25")))


@pytest.mark.sim
@pytest.mark.parametrize("seed", SEEDS)
def test_no_loop_in_any_network(seed: int) -> None:
    """Up to 8 bridges of both kinds, any cables between them, some shared; cables break and come back. A loop raises at once."""
    rng = random.Random(seed)
    count = rng.randint(2, 8)
    kind = rng.choice(["rstp", "rstp", "stp", "mixed"])
    settings = [
        TreeSettings(
            Protocol.STP if kind == "stp" or (kind == "mixed" and rng.random() < 0.4) else Protocol.RSTP, rng.choice((0x1000, 0x8000))
        )
        for _ in range(count)
    ]
    network = BridgedNetwork(settings, seed)
    for bridge in range(1, count):
        network.join(bridge, rng.randrange(bridge))
    for _ in range(rng.randint(1, count * 2)):
        members = rng.sample(range(count), min(count, rng.choice((2, 2, 2, 3))))
        network.join(*members)
        network.run_for(rng.choice((0.0, 0.001, 1.0)))
    assert network.run_for(200, lambda: still(network)), network.picture()
    for _ in range(8):
        cable = rng.choice(network.cables)
        network.set_up(cable, not cable.up)
        network.run_for(rng.choice((0.0001, 0.01, 2.5, 60.0)))
    # What is believed of a root that is gone dies of its age, at first.
    network.run_for(100)
    assert network.run_for(200, lambda: still(network)), network.picture()
    network.run_for(30)
    assert still(network)
