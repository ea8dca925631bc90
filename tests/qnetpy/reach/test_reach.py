"""Gossip between whole nodes in virtual time: who hears of whom, what a lying member can cause, and that others cost nothing.

The nodes are joined by simulated cables; their UDP drivers are real and lead nowhere.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import socket
from collections.abc import Callable

import pytest

from qnetpy.channels import CHID_GOSSIP
from qnetpy.discovery import hint as discovery_hint
from qnetpy.discovery.hint import Hint
from qnetpy.link.constants import ATTEMPT_TIMEOUT
from qnetpy.link.outcome import Failed, PeerHint
from qnetpy.reach.gossip import AGE_MAX, ENTRIES_MAX, PER_TELLER_MAX, Told, pack
from qnetpy.reach.reach import AGAIN, ANNOUNCED_MAX, HINTED_MAX, MESSAGES_BURST, PER_HOST_MAX, discovery_interfaces, endpoints
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import PID_SYSTEM, Credentials
from resmgr.dispatch import Buffer
from resmgr.ids import CHIDS_DAEMONS
from resmgr.testing.virtual import VirtualDispatch
from stack.core.ifnet import Interface
from stack.drivers.udp import UdpDriver
from stack.drivers.udp_socket.options import UdpOptions
from stack.testing.namespace import Namespace
from stack.wire.endpoint import Endpoint

pytestmark = pytest.mark.priv
MakeDriver = Callable[..., UdpDriver]
Give = Callable[[SimNode, str], UdpDriver]


def interface_of(node: SimNode, driver: UdpDriver, name: str = "udp0") -> Interface:
    return Interface(node.stack, name, 9, driver, driver)


@pytest.fixture
def give_udp(make_driver: MakeDriver) -> Give:
    """Gives a node the bearer, at an address."""

    def give(node: SimNode, address: str) -> UdpDriver:
        driver = make_driver(address)
        node.qnet.reach.interface(interface_of(node, driver))
        return driver

    return give


@pytest.fixture
def world() -> World:
    """a and b have no cable in common; s has one with each."""
    made = World(3, links=("red", "green"))
    made.start("a", links=["red"])
    made.start("b", links=["green"])
    made.start("s")
    assert made.until(lambda: made.nodes["s"].sees("a") and made.nodes["s"].sees("b"))
    return made


def wanted(node: SimNode) -> set[str]:
    return {str(place) for place in node.qnet.reach._hinted}


def test_a_node_that_both_know_tells_them_of_each_other(world: World, give_udp: Give) -> None:
    a, b, s = (world.nodes[name] for name in "abs")
    give_udp(a, "10.0.0.1")
    give_udp(b, "10.1.0.1")
    world.run(5.0)
    assert wanted(a) == {"10.1.0.1:34997"}
    assert wanted(b) == {"10.0.0.1:34997"}
    assert wanted(s) == set(), "s has no UDP: it tells, and calls nobody"
    assert not a.sees("b")


def test_without_the_bearer_nothing_is_sent(world: World) -> None:
    world.run(200.0)
    for node in world.nodes.values():
        assert node.qnet.counters["gossip_sent"] == 0
        assert node.qnet.reach._round is None


def test_a_node_that_comes_later_hears_what_was(world: World, give_udp: Give) -> None:
    give_udp(world.nodes["a"], "10.0.0.1")
    world.run(5.0)
    world.nodes["b"].crash()
    world.run(5.0)
    again = world.start("b", links=["green"])
    give_udp(again, "10.1.0.1")
    assert world.until(lambda: wanted(again) == {"10.0.0.1:34997"}, 10.0)
    assert world.until(lambda: wanted(world.nodes["a"]) == {"10.1.0.1:34997"}, 10.0)


def test_what_nobody_confirms_is_forgotten(world: World, give_udp: Give) -> None:
    a, b = world.nodes["a"], world.nodes["b"]
    give_udp(a, "10.0.0.1")
    driver = give_udp(b, "10.1.0.1")
    world.run(5.0)
    assert driver.info()["endpoints kept"] == 1
    a.crash()
    world.run(2.5 * AGE_MAX)
    assert wanted(b) == set()
    assert driver.info()["endpoints kept"] == 0


class Liar:
    """Sends what it likes to another node's gossip channel."""

    def __init__(self, world: World, teller: str, victim: str) -> None:
        self.world = world
        self.connection = world.nodes[teller].connect(victim, PID_SYSTEM, CHID_GOSSIP)

    def say(self, data: bytes) -> int:
        results: list[int] = []

        def done(status: int, reply: Buffer) -> None:
            results.append(status)

        self.connection.submit([data], 0, done)
        assert self.world.until(lambda: bool(results), 5.0)
        return results[0]


def test_a_lying_member_causes_bounded_calls(world: World, give_udp: Give) -> None:
    s, b = world.nodes["s"], world.nodes["b"]
    driver = give_udp(b, "10.1.0.1")
    liar = Liar(world, "s", "b")
    for turn in range(8):
        entries = [Told(f"n{turn}-{number}", Endpoint(f"203.{turn}.{number >> 8}.{number & 255}", 9), 0) for number in range(ENTRIES_MAX)]
        assert liar.say(pack(entries)) == 0
    assert len(b.qnet.reach._hinted) == PER_TELLER_MAX
    assert driver.info()["endpoints kept"] == PER_TELLER_MAX
    assert b.qnet.counters["gossip_over_cap"] == 8 * ENTRIES_MAX - PER_TELLER_MAX
    assert len(b.qnet.reach.table) == 0, "what third nodes told is not told on"
    assert b.sees("s")
    assert s.sees("b")


def test_who_says_again_where_it_is_is_called_there_again_and_not_without_end(world: World, give_udp: Give) -> None:
    b = world.nodes["b"]
    give_udp(b, "10.1.0.1")
    calls: list[float] = []
    reach = b.qnet.reach
    hint = reach.wanted._hint
    reach.wanted._hint = lambda address: (calls.append(world.now), hint(address))[1]  # type: ignore[func-returns-value]  # counts
    teller = Liar(world, "s", "b")
    said = pack([Told("s", Endpoint("203.0.113.1", 9), 0), Told("z", Endpoint("203.0.113.2", 9), 0)])
    for _ in range(4 * MESSAGES_BURST):
        teller.say(said)
        world.run(0.1)
    assert calls[0] == calls[1], "each once"
    assert len(calls) >= 2 + int((world.now - calls[0]) / (AGAIN + 0.2)), "then that of the teller itself"
    assert all(later - before >= AGAIN for before, later in itertools.pairwise(calls[1:]))


def test_all_ports_of_one_host_and_all_places_of_one_name(world: World, give_udp: Give) -> None:
    b = world.nodes["b"]
    give_udp(b, "10.1.0.1")
    liar = Liar(world, "s", "b")
    assert liar.say(pack([Told(f"n{port}", Endpoint("203.0.113.1", port), 0) for port in range(1, 300)])) == 0
    assert len(b.qnet.reach._hinted) == PER_HOST_MAX
    assert liar.say(pack([Told("x", Endpoint("203.0.114.1", port), 0) for port in range(1, 300)])) == 0
    assert len(b.qnet.reach._hinted) == PER_HOST_MAX + 8
    assert liar.say(pack([Told("s", Endpoint("203.0.115.1", port), 0) for port in range(1, 300)])) == 0
    assert len(b.qnet.reach.table) == 8, "of itself it may tell so much"
    assert HINTED_MAX <= 2 * PER_TELLER_MAX


def test_strangers_that_announce_do_not_take_the_places_of_others(world: World, give_udp: Give) -> None:
    b = world.nodes["b"]
    give_udp(b, "10.1.0.1")
    hints = [
        Hint(
            "eth0",
            b"",
            0x88B5,
            number.to_bytes(16, "big"),
            99.0,
            7,
            tuple(f"203.{number % 256}.{number // 256}.{last}" for last in range(8)),
        )
        for number in range(200)
    ]
    for hint in hints:
        b.qnet.reach.hint(hint)
    assert len(b.qnet.reach.wanted) == ANNOUNCED_MAX
    b.qnet.reach.hint(Hint("", b"", 0x88B5, bytes(16), math.inf, 7, ("10.0.0.77",)))
    assert Endpoint("10.0.0.77", 7) in b.qnet.reach.wanted, "a configured seed"
    assert Liar(world, "s", "b").say(pack([Told("x", Endpoint("10.0.0.78", 7), 0)])) == 0
    assert Endpoint("10.0.0.78", 7) in b.qnet.reach.wanted
    for hint in hints:
        b.qnet.reach.hint_gone(hint)
    assert len(b.qnet.reach.wanted) == 2
    for port in range(1, 200):
        b.qnet.reach.hint(Hint("eth0", b"", 0x88B5, port.to_bytes(16, "big"), 99.0, port, ("203.0.0.1",)))
    assert len(b.qnet.reach.wanted) == 2 + PER_HOST_MAX
    assert b.qnet.counters["announced_over_cap"] == 200 * 8 - ANNOUNCED_MAX + 199 - PER_HOST_MAX


def test_a_hint_that_changes_is_one_hint(world: World, give_udp: Give) -> None:
    """As zeroconf tells it: again with other addresses, gone with another expiry."""
    b = world.nodes["b"]
    driver = give_udp(b, "10.1.0.1")
    reach = b.qnet.reach
    token = b"t" * 16
    for expiry, addresses in ((10.0, ("10.0.0.1",)), (20.0, ("10.0.0.1", "10.0.0.2")), (30.0, ("10.0.0.3",))):
        reach.hint(Hint("lo", b"", 0x88B5, token, expiry, 7, addresses))
        assert len(reach.wanted) == len(addresses)
        assert driver.info()["endpoints kept"] == len(addresses)
    reach.hint_gone(Hint("lo", b"", 0x88B5, token, 99.0, 7, ("10.0.0.4",)))
    assert (len(reach.wanted), driver.info()["endpoints kept"], len(reach._counts)) == (0, 0, 0)


def test_a_liar_cannot_silence_others(world: World, give_udp: Give) -> None:
    """Who tells a wrong place of a newcomer does not keep us from telling the right one."""
    a, b = world.nodes["a"], world.nodes["b"]
    give_udp(b, "10.1.0.1")
    world.run(5.0)
    give_udp(a, "10.0.0.1")
    assert world.until(lambda: "a" in world.nodes["s"].qnet.reach._spread, 5.0)
    assert Liar(world, "b", "s").say(pack([Told("a", Endpoint("203.0.113.1", 9), 0)])) == 0
    world.run(5.0)
    assert wanted(b) == {"10.0.0.1:34997"}


def test_nonsense_is_refused_and_counted(world: World, give_udp: Give) -> None:
    b = world.nodes["b"]
    give_udp(b, "10.1.0.1")
    liar = Liar(world, "s", "b")
    assert liar.say(b"") == -errno.EBADMSG
    assert liar.say(b"\1\0\0\1") == -errno.EBADMSG
    assert liar.say(bytes(100_000)) == -errno.EMSGSIZE
    assert b.qnet.counters["gossip_malformed"] == 2
    good = pack([])
    results = [liar.say(good) for _ in range(MESSAGES_BURST + 20)]
    assert results.count(-errno.EAGAIN) >= 10
    assert b.qnet.counters["gossip_too_often"] == results.count(-errno.EAGAIN)
    world.run(5.0)
    assert liar.say(good) == 0


def test_programs_of_this_node_cannot_gossip(world: World) -> None:
    b = world.nodes["b"]
    results: list[int] = []
    b.connect("b", PID_SYSTEM, CHID_GOSSIP).submit([pack([])], 0, lambda status, reply: results.append(status))
    world.run(0.1)
    assert results == [-errno.EPERM]
    s = world.nodes["s"]
    for who in (Credentials(1000, 1000, (), 77), Credentials(0, 0, (), 77), Credentials(1000, 1000)):
        s.system.kernel.connect(s.nd("b"), PID_SYSTEM, CHID_GOSSIP, who).submit([pack([])], 0, lambda status, reply: results.append(status))
        world.run(0.1)
    assert results == [-errno.EPERM] * 4, "nor those of another"
    assert CHID_GOSSIP in CHIDS_DAEMONS


def test_one_of_many_speaks(give_udp: Give) -> None:
    """Eight nodes know a newcomer at the same time; only few of them tell all others of it."""
    world = World(11)
    names = [f"n{number}" for number in range(8)]
    for name in names:
        world.start(name)
    assert world.until(world.settled, 20.0)
    for number, name in enumerate(names):
        give_udp(world.nodes[name], f"10.0.0.{number + 1}")
    world.run(20.0)
    before = sum(world.nodes[name].qnet.counters["gossip_sent"] for name in names)
    world.start("z")
    give_udp(world.nodes["z"], "10.0.0.99")
    assert world.until(world.settled, 20.0)
    world.run(5.0)
    sent = sum(world.nodes[name].qnet.counters["gossip_sent"] for name in names) - before
    assert sent < 8 * 7, f"{sent} messages: everybody told everybody"


def test_closing_leaves_nothing(world: World, give_udp: Give) -> None:
    a = world.nodes["a"]
    driver = give_udp(a, "10.0.0.1")
    world.run(1.0)
    a.qnet.reach.hint(Hint("", b"", 0x88B5, bytes(16), math.inf, 7, ("10.0.0.77",)))
    a.qnet.detach()
    assert a.qnet.reach._peers == {}
    assert driver.info()["endpoints kept"] == 0
    a.qnet.reach.close()


def test_people_are_told_the_endpoint_and_not_its_station(world: World, make_driver: MakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    node, driver = world.nodes["a"], make_driver("10.0.0.1")
    # Loading it would attach its sockets, which virtual time has not.
    node.stack._interfaces.add(interface_of(node, driver))
    station = driver.station(Endpoint("10.0.0.9", 8))
    assert station is not None
    with caplog.at_level(logging.INFO):
        node.qnet.path_changed(node.qnet.machine.links["s"], ("udp0", station), "opened")
        node.qnet.path_changed(node.qnet.machine.links["s"], ("red", bytes(6)), "opened")
    assert "node s: path over udp0 10.0.0.9:8 opened" in caplog.messages
    assert "node s: path over red 00:00:00:00:00:00 opened" in caplog.messages
    handshake = node.qnet.handshake
    handshake.initiate(PeerHint(("udp0", station), "z"), world.now)
    handshake.handle_timeout(world.now + ATTEMPT_TIMEOUT)
    (event,) = handshake.events()
    assert isinstance(event, Failed)
    assert event.sentence.startswith("node z at udp0 10.0.0.9:8 does not answer")


def test_hints_become_endpoints() -> None:
    index = socket.if_nametoindex("lo")
    addresses = ("10.0.0.1", "fe80::1", "fe80::1%lo", "fe80::1%nothing", "fe9a::1", "2001:db8::1", "nonsense", "::ffff:10.0.0.2")
    hint = Hint("lo", b"", 0x88B5, bytes(16), 0.0, 77, addresses)
    assert list(map(str, endpoints(hint))) == [
        "10.0.0.1:77",
        f"[fe80::1%{index}]:77",
        f"[fe80::1%{index}]:77",
        f"[fe9a::1%{index}]:77",
        "[2001:db8::1]:77",
        "10.0.0.2:77",
    ]


def test_where_discovery_looks(world: World, namespace: Namespace) -> None:
    namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    for name, address in (("eth0", "10.9.0.1/24"), ("eth1", "10.9.1.1/24")):
        namespace.ip("address", "add", address, "dev", name)
    node = world.nodes["a"]
    ethernet = node.stack.interfaces[0]
    with namespace.entered():
        driver = UdpDriver(VirtualDispatch(1), UdpOptions(port=7))
    mac = ethernet.mac
    ethernet.name = "eth0"
    found = discovery_interfaces([ethernet, interface_of(node, driver)])
    driver.detach()
    assert found == {"eth0": discovery_hint.Interface("eth0", mac, 7), "eth1": discovery_hint.Interface("eth1", b"", 7)}
    assert discovery_interfaces([ethernet]) == {"eth0": discovery_hint.Interface("eth0", mac, 0)}
