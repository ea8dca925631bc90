"""Whole nodes on a simulated internet: a seed and gossip, a node behind a router, a router that forgets, both bearers in one connection."""

from __future__ import annotations

import attrs
import pytest

from qnetpy.identity.authority import Authority, issue_certificate, issue_identity, make_authority
from qnetpy.identity.trust import Kind, make_statement
from qnetpy.members.store import Kept
from qnetpy.testing.members import MemoryStore
from qnetpy.testing.node import SimNode
from qnetpy.testing.workload import Client, Ledger, Server
from qnetpy.testing.world import World

pytestmark = pytest.mark.sim


class Load:
    """Operations of one node at another, without end, of which none may fail."""

    def __init__(self, world: World, client: SimNode, server: SimNode) -> None:
        self.world = world
        self.ledger = Ledger(world.dispatch.note)
        self.ledger.undisturbed = True
        Server(server, self.ledger)
        self.client = Client(client, server.name, self.ledger, world.dispatch.random("load"))
        self._again()

    def _again(self) -> None:
        self.client.send(0)
        self.world.at(self.world.now + 0.02, self._again)

    def check(self) -> None:
        assert self.ledger.wrongs == []
        assert set(self.ledger.results) == {"ok"}
        # The largest operation takes a moment; whoever waits longer waits for a path.
        assert all(self.world.now - op.began < 1.0 for op in self.ledger.open.values())


def usable(node: SimNode) -> list[str]:
    """The interfaces by which the node reaches its only peer."""
    return [
        path.address[0] for link in node.qnet.machine.links.values() for number, path in link.paths.items() if link.transport.usable(number)
    ]


def endpoints(node: SimNode, other: str) -> list[str]:
    link = node.qnet.machine.links[other]
    return [str(node.qnet.endpoint(path.address)) for number, path in link.paths.items() if link.transport.usable(number)]


def test_one_seed_joins_all_and_is_not_needed_afterwards() -> None:
    world = World(1, links=(), internets=("wan",))
    world.join("seed", "a", "b")
    for name in ("a", "b"):
        world.start(name, call=["seed"])
    seed = world.start("seed", call=[])
    assert world.until(world.settled, 10.0)
    seed.crash()
    load = Load(world, world.nodes["a"], world.nodes["b"])
    world.run(10.0)
    load.check()
    assert world.settled()


@pytest.mark.parametrize("smaller", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_router_that_forgets_under_load_ends_nothing(seed: int, smaller: bool) -> None:
    """The node behind it, whichever name it has, is reached at its new endpoint, over its only path."""
    home, far = ("a", "b") if smaller else ("b", "a")
    world = World(seed, links=(), internets=("wan",), behind=(home,))
    world.join("a", "b")
    here, there = world.start(home), world.start(far)
    assert world.until(world.settled, 10.0)
    world.run(1.0)
    loads = [Load(world, here, there), Load(world, there, here)]
    world.run(0.5)
    (before,) = endpoints(there, home)
    for _ in range(3):
        world.routers[home].forget()
        assert world.until(lambda before=before: endpoints(there, home) not in ([], [before]), 2.0)  # type: ignore[misc]  # bound early
        world.run(2.0)
        (before,) = endpoints(there, home)
        for load in loads:
            load.check()
    assert [node.starts for one in (here, there) for node in one.qnet.nodes] == [1, 1]
    assert there.qnet.machine.counters["other_endpoint"] == 3
    assert [len(one.qnet.machine.links[other].paths) for one, other in ((here, far), (there, home))] == [1, 1]


def test_a_path_that_works_is_not_moved_by_who_sends_its_packets_from_elsewhere() -> None:
    world = World(2, links=(), internets=("wan",))
    a, b = world.start("a"), world.start("b")
    assert world.until(world.settled, 10.0)
    world.join("enemy")
    enemy = world.start("enemy", call=[])
    port = enemy.cables["udp0"].inner
    caught: list[bytes] = []
    internet = world.hubs["wan"]
    real = internet.spread

    def tap(sender, frames):  # type: ignore[no-untyped-def]  # as of Hub.spread
        if sender is a.cables["udp0"].inner and len(caught) < 20:
            caught.extend(frames)
            return  # he is quicker than the network
        real(sender, frames)

    internet.spread = tap  # type: ignore[method-assign]  # the enemy's tap
    world.run(1.0)
    station = port.station(b.cables["udp0"].inner.local_endpoint)  # type: ignore[attr-defined]  # a port of the internet
    for frame in caught:
        port.transmit([station + port.mac + frame[12:]])
    world.run(3.0)
    assert endpoints(b, "a") == [str(a.cables["udp0"].inner.local_endpoint)]  # type: ignore[attr-defined]  # the same
    assert b.qnet.machine.links["a"].sessions.current is not None
    assert [node.starts for node in b.qnet.nodes if node.name == "a"] == [1]


def test_both_bearers_are_paths_of_one_connection_and_take_over_from_each_other() -> None:
    world = World(3, internets=("wan",), behind=("b",))
    world.join("a", "b")
    a, b = world.start("a"), world.start("b")
    assert world.until(lambda: world.settled() and len(endpoints(a, "b")) == 2, 10.0)
    load = Load(world, a, b)
    for interface in ("en0", "udp0", "en0"):
        b.cables[interface].cut = True
        world.run(2.0)
        b.cables[interface].cut = False
        world.run(2.0)
        load.check()
    assert len(endpoints(a, "b")) == 2


@pytest.mark.parametrize("late", ["a", "b"])
@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_starts_calls_all_addresses_of_another_and_has_all_paths_at_once(seed: int, late: str) -> None:
    """The cable answers first. By that the INITIATION to the other address is an old one, which nobody would answer."""
    world = World(seed, internets=("wan",))
    world.join("a", "b")
    world.start("b" if late == "a" else "a")
    world.run(2.0)
    world.start(late)
    assert world.until(lambda: world.settled() and all(len(usable(node)) == 2 for node in world.live), 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_comes_back_with_another_is_used_as_soon(seed: int) -> None:
    """Nobody was ever met there, so it is called once a minute: whoever is up again says where it is, and is called there."""
    world = World(seed, internets=("wan",))
    a, b = world.start("a", call=[]), world.start("b", call=["a"])
    a.cables["udp0"].cut = True
    world.run(70.0)
    assert world.settled()
    a.cables["en0"].cut = True
    world.run(60.0)
    assert not a.sees("b")
    for cable in a.cables.values():
        cable.cut = False
    assert world.until(world.settled, 7.0)
    assert world.until(lambda: all(len(usable(node)) == 2 for node in (a, b)), 1.0)


def under_two_roots(world: World, name: str) -> tuple[MemoryStore, Authority]:
    """A node that shows a certificate under the cluster's root and has one under another, and that root."""
    wall, random = world.identity_wall, world.dispatch.random("roots").randbytes
    old = world.authority
    new = make_authority(old.cluster, wall, random=random, secret=old.secret)
    identity = attrs.evolve(issue_identity(old, name, ["member"], wall, random=random), roots=(old.root, new.root))
    following = issue_certificate(new, name, identity.certificate.static_key, ["member"], wall, random=random)
    return MemoryStore(Kept(identity, next=following, statements=(make_statement(old, Kind.ROOT, new.root, wall),))), new


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("met", [False, True])
def test_a_node_that_nobody_can_call_tells_another_that_its_root_was_replaced(names: tuple[str, str], met: bool) -> None:
    """*late* was off when the older root was retired, shows that one yet, and *home*, which has the newer alone, is behind a router."""
    home, late = names
    world = World(5, links=(), internets=("wan",), behind=(home,))
    store, root = under_two_roots(world, late)
    own = MemoryStore(Kept(issue_identity(root, home, ["member"], world.identity_wall, random=world.dispatch.random("home").randbytes)))
    world.join(home, late)
    if met:
        # In the same boot of *home*, which knows its key since then.
        assert store.kept.next is not None
        newer = attrs.evolve(store.kept, identity=attrs.evolve(store.kept.identity, certificate=store.kept.next), next=None)
        world.start(late, store=MemoryStore(newer), call=[])
    else:
        world.start(late, store=store, call=[])
    node = world.start(home, store=own, call=[late])
    if met:
        assert world.until(world.settled, 5.0)
        world.nodes[late].crash()
        world.run(0.5)
        world.start(late, store=store, call=[])
    assert world.until(lambda: world.settled() and world.nodes[late].sees(home), 40.0)
    shown = node.qnet.machine.links[late].peer.certificate
    assert shown == store.kept.identity.certificate
    assert shown.root_id == root.root.key_id, "and it stays so"
    world.run(150.0)
    assert world.settled()
