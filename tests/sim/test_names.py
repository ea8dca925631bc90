"""Global names and events of nodes on whole nodes in virtual time: crash, partition, heal, restart under loss, over seeds. What
docs/protocol/names.md promises is looked at after every turn of any node.

NAMES_SEEDS=N in the environment runs N seeds instead of 30.
"""

from __future__ import annotations

import errno
import os
import random

import pytest

from qnetpy.testing.nameswork import NamesTruth, NamesWork
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.access import Grant, Policy, Verb
from resmgr.channel import CHID_PATHMGR, PID_SYSTEM, Connection, Credentials
from resmgr.iomsg import Connect, Entry, parse_dirents
from resmgr.iorequest import ConnectRequest, pack_readdir
from resmgr.names.protocol import Record
from resmgr.names.replicawire import Drop, Put, pack

pytestmark = pytest.mark.sim
SEEDS = int(os.environ.get("NAMES_SEEDS", "30"))
GROUP = 10
CONVERGE = 12.0
"""Seconds after a heal within which nodes see each other (tests/sim/test_nodes.py)."""
SAME = 1.0
"""Seconds after that within which they list the same names: good cables, and at most one message under way that was lost."""
FAULTS = ("", "drop=5%,reorder=5%", "drop=15%,dup=5%", "delay=5ms,jitter=2ms,drop=5%")


class Wrong(AssertionError):
    """What a node listed was not what was promised."""


class Run:
    """A world of three or four nodes with names, and troubles drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"{seed}/names")
        self.names = ["a", "b", "c", "d"][: self.chance.choice([3, 3, 4])]
        self.world = World(seed, fault=self.chance.choice(FAULTS), watch=False)
        self.truth = NamesTruth(self.world, self.wrong)
        self.world.join(*self.names)
        for name in self.names:
            self.start(name)

    def wrong(self, text: str) -> None:
        raise Wrong(text)

    def start(self, name: str) -> NamesWork:
        return NamesWork(self.truth, self.world.start(name), random.Random(self.chance.getrandbits(64)))

    def run(self, seconds: float) -> None:
        """Look after every turn."""
        end = self.world.now + seconds

        def look() -> bool:
            self.truth.check()
            return False

        self.world.until(look, seconds)
        self.world.run(max(0.0, end - self.world.now))

    def trouble(self) -> None:
        chance, world = self.chance, self.world
        node = world.nodes[chance.choice(self.names)]
        what = chance.choice(["crash", "stop", "cut", "carrier", "sever", "worse", "heal"])
        if node.dead:
            self.start(node.name)
        elif what == "crash":
            node.crash()
        elif what == "stop":
            node.stop()
        elif what == "cut":
            node.fault.cut = True
        elif what == "carrier":
            node.fault.set_carrier(not node.fault.up)
        elif what == "sever":
            other = chance.choice([name for name in self.names if name != node.name])
            world.hub.severed = world.hub.severed | {(node.name, other)}
        elif what == "worse":
            node.set_fault("drop=30%,reorder=10%")
        else:
            self.heal(node)

    def heal(self, node: SimNode) -> None:
        node.fault.cut = False
        node.fault.set_carrier(True)
        node.set_fault(self.world.fault)
        self.world.hub.severed = {pair for pair in self.world.hub.severed if node.name not in pair}

    def heal_all(self) -> float:
        """Seconds from when all see each other to when all list the same."""
        for name in self.names:
            if self.world.nodes[name].dead and self.chance.random() < 0.7:
                self.start(name)
        if len(self.world.live) < 2:
            for name in self.names:
                if self.world.nodes[name].dead:
                    self.start(name)
        for node in self.world.live:
            self.heal(node)
            node.set_fault("")
        assert self.world.until(self.world.settled, CONVERGE)
        self.truth.stop()
        began = self.world.now
        assert self.world.until(lambda: not self.truth.differences(), SAME), self.truth.differences()
        return self.world.now - began


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP), ids=lambda first: f"seeds-{first}")
def test_no_ghost_and_no_split(first: int) -> None:
    events = records = checks = 0
    for seed in range(first, min(first + GROUP, SEEDS)):
        run = Run(seed)
        try:
            for _ in range(run.chance.choice([2, 4, 8])):
                run.run(run.chance.uniform(0.1, 1.5))
                run.trouble()
            run.run(4.0)
            run.heal_all()
            run.run(1.5)
            assert run.truth.differences() == []
            _open_all(run)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        live = [work for node, work in run.truth.works.items() if not node.dead]
        for work in live:
            assert set(work.node.names.globals.counters) <= {"names_sent"}, work.node.names.globals.counters
        events += sum(work.events for work in live)
        records += sum(len(work.attached) for work in live)
        checks += run.truth.checks
    assert min(events, records, checks // 10) > 100, "nothing happened: it shows nothing"


def _open_all(run: Run) -> None:
    """Whoever opens a name of a node anywhere is sent to an owner there."""
    for here in run.world.live:
        for there in run.world.live:
            own: list[Record] = list(there.names.globals.replica.own.values())
            for record in own:
                found = run.truth.works[here].look_up(record.name, there.name)
                assert found is not None
                assert (here.nd(there.name), found[1:]) == (found[0], found[1:])
                assert found[1:] in {(one.pid, one.chid) for one in own if one.name == record.name}


# ---- single histories


def pair(fault: str = "") -> tuple[World, NamesTruth, SimNode, SimNode]:
    world = World(7, fault=fault, watch=False)
    a, b = world.start("a"), world.start("b")
    truth = NamesTruth(world, lambda text: pytest.fail(text))
    for node in (a, b):
        NamesWork(truth, node, random.Random(1)).going = False
    assert world.until(world.settled)
    world.run(0.1)
    return world, truth, a, b


def listed(node: SimNode) -> set[tuple[str, bytes]]:
    return {(record.node, record.name) for record in node.names.globals.replica.records() if record.node}


def test_a_withdrawal_is_there_after_one_way() -> None:
    world, truth, a, b = pair("delay=5ms")
    truth.works[b].attach(b"mine")
    world.run(0.1)
    assert ("b", b"mine") in listed(a)
    began = world.now
    while truth.works[b]._owners:
        truth.works[b].withdraw()
    assert world.until(lambda: not listed(a))
    assert world.now - began < 0.02, "one message, behind at most one other"


def test_names_go_in_the_turn_in_which_the_node_is_down() -> None:
    world, truth, a, b = pair()
    truth.works[b].attach(b"mine")
    world.run(0.1)
    assert listed(a)
    b.crash()
    began = world.now
    assert world.until(lambda: not a.qnet.nodes.get("b").reachable, 10.0)  # type: ignore[union-attr]  # it was met
    assert not listed(a)
    assert world.now - began < 3.1
    world.start("b")
    assert world.until(world.settled)
    world.run(1.0)
    assert not listed(a), "another boot, which has none"


def test_two_sides_keep_their_own_names_and_hear_the_others_again() -> None:
    world, truth, a, b = pair()
    for node in (a, b):
        truth.works[node].attach(b"same")
    world.run(0.1)
    world.hub.severed = {("a", "b"), ("b", "a")}
    world.run(4.0)
    assert not listed(a) | listed(b)
    truth.works[b].attach(b"clock")
    assert {record.name for record in a.names.records()} >= {b"same"}
    world.hub.severed = set()
    assert world.until(world.settled)
    world.run(0.1)
    assert truth.differences() == []
    assert {("b", b"same"), ("b", b"clock")} <= listed(a)
    assert ("a", b"same") in listed(b)


def test_other_nodes_see_what_a_node_itself_has() -> None:
    world, truth, a, b = pair()
    truth.works[a].attach(b"near")
    truth.works[b].attach(b"far")
    truth.works[b].attach(b"far")
    world.run(0.1)
    connections: dict[tuple[int, int], Connection] = {}

    def ask(pid: int, chid: int, message: bytes) -> tuple[int, bytes]:
        """One message from a to b, on one connection to each channel."""
        answers: list[tuple[int, bytes]] = []
        connection = connections.setdefault((pid, chid), a.connect("b", pid, chid))
        connection.submit([message], 65536, lambda status, reply: answers.append((status, bytes(reply))))
        assert world.until(lambda: bool(answers))
        return answers[0]

    def look(name: bytes) -> Entry | int:
        status, reply = ask(PID_SYSTEM, CHID_PATHMGR, ConnectRequest(Connect.LOOKUP, 0, 0, b"dev/name/global/" + name).pack())
        return status if status < 0 else Entry.parse(reply)

    opening = ConnectRequest(Connect.OPEN, os.O_RDONLY | os.O_DIRECTORY, 0, b"dev/name/global").pack()
    entry = Entry.parse(ask(PID_SYSTEM, CHID_PATHMGR, opening)[1])
    status, reply = ask(entry.target.pid, entry.target.chid, pack_readdir(entry.ocb, 0, 65536, 0))
    assert status == 0
    own = list(b.names.globals.replica.own.values())
    assert {one.name for one in parse_dirents(reply, False)} == {record.name for record in own} != set()
    for name in (b"far", b"far@b", b"far~roundrobin"):
        found = look(name)
        assert isinstance(found, Entry)
        assert found.target.pid in {record.pid for record in own if record.name == b"far"}
    for name in (b"near", b"near@a", b"far@a"):
        assert look(name) == -errno.ENOENT


def test_rules_hide_and_show_at_once() -> None:
    world, truth, a, b = pair()
    truth.works[b].attach(b"mine")
    world.run(0.1)
    a.system.set_policy(Policy(a.system.accounts, grants=(Grant(Verb.SEND),)))
    assert not listed(a)
    world.run(0.5)
    truth.check()
    a.system.set_policy(Policy(a.system.accounts, grants=(Grant(Verb.ANNOUNCE, nodes=("b",)),)))
    assert ("b", b"mine") in listed(a)


def test_a_user_of_another_node_cannot_speak_for_its_daemon() -> None:
    world, _, a, b = pair()
    before = listed(a)
    answers: list[int] = []
    for credentials in (Credentials(0, 0, (), 5), Credentials(1000, 1000)):
        connection = b.system.kernel.connect(b.nd("a"), PID_SYSTEM, 11, credentials)
        connection.submit([pack(99, 0, [Put(1, b"evil", 1, 1, 0, 0)])], 0, lambda status, reply: answers.append(status))
    connection = a.system.kernel.connect(a.nd("a"), PID_SYSTEM, 11, Credentials(0, 0))
    connection.submit([pack(99, 0, [Put(1, b"evil", 1, 1, 0, 0)])], 0, lambda status, reply: answers.append(status))
    world.run(0.5)
    assert answers == [-1] * 3
    assert listed(a) == before


def test_a_lying_daemon_lies_about_itself_only() -> None:
    world, truth, a, b = pair()
    c = world.start("c")
    NamesWork(truth, c, random.Random(2)).going = False
    assert world.until(world.settled)
    truth.works[c].attach(b"honest")
    world.run(0.1)
    serial = next(one.serial for one in c.names.globals.replica.own.values() if one.name == b"honest")
    answers: list[int] = []
    connection = b.connect("a", PID_SYSTEM, 11)
    for entries in ([Drop(serial)], [Put(serial, b"honest", 1, 1, 0, 0)], [Put(n, b"x", 1, 1, 0, 0) for n in range(512)]):
        for generation in (50, 51, 52):
            connection.submit([pack(generation, 0, entries)], 0, lambda status, reply: answers.append(status))
        world.run(0.2)
    assert ("c", b"honest") in listed(a)
    assert {record.nd for record in a.names.globals.replica.records() if record.node == "b"} == {a.nd("b")}
    assert set(answers) == {0, -74}, "generations that go back are no messages"
