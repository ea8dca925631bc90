"""Global names as machines: every event of docs/protocol/names.md, hostile messages, and random histories of several nodes."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable

import pytest

from resmgr.errors import BadMessage
from resmgr.names import replicawire as wire
from resmgr.names.choice import choose, split
from resmgr.names.protocol import NameChange, Record
from resmgr.names.replica import (
    AGAIN_MAX,
    AGAIN_MIN,
    DEAF_AGAIN,
    HEAR_BURST,
    HEAR_RATE,
    LOAD_STEP,
    NAMES_MAX,
    NAMES_PER_NODE,
    SEND_BURST,
    TAKE_BURST,
    TELL_BURST,
    TELL_RATE,
    TOLD_MAX,
    Replica,
)

PUT = wire.Put(7, b"clock", 100, 20, 1000, 1000)


class Machine:
    """A replica whose changes are checked against its table at each step."""

    def __init__(self, checked: bool = True) -> None:
        self.checked = checked
        self.counters: Counter[str] = Counter()
        self.view: dict[tuple[str, int], Record] = {}
        self.replica = Replica(self.changed, self.counters)

    def changed(self, kind: NameChange, record: Record) -> None:
        key = (record.node, record.serial)
        if kind is NameChange.APPEARED:
            assert key not in self.view
            self.view[key] = record
        else:
            assert self.view.pop(key) == record
        if self.checked:
            assert set(self.view.values()) == set(self.replica.records())

    def attach(self, name: bytes, pid: int = 100, chid: int = 20) -> Record:
        record = self.replica.attach(name, pid, chid, 1000, 1000)
        assert isinstance(record, Record), record
        return record

    def names(self) -> list[bytes]:
        return sorted(self.replica.names())


def told(message: bytes) -> list[wire.Entry]:
    return wire.parse(message).entries


def only(replica: Replica, now: float) -> bytes:
    [(_, message)] = replica.transmit(now)
    return message


# ---- formats


def test_messages_are_read_as_they_were_made() -> None:
    entries: list[wire.Entry] = [PUT, wire.Drop(3), PUT._replace(serial=2**64 - 1, name=b"\xff" * 255)]
    data = wire.pack(9, 250, entries)
    assert len(data) == wire.HEAD.size + sum(map(wire.size, entries))
    assert wire.parse(data) == wire.Told(9, 250, entries)
    for length in range(len(data)):
        with pytest.raises(BadMessage):
            wire.parse(data[:length])
    with pytest.raises(BadMessage):
        wire.parse(data + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.__setitem__(0, 2),
        lambda data: data.__setitem__(1, 1),
        lambda data: data.__setitem__(7, 1),
        lambda data: data.__setitem__(wire.HEAD.size, 3),
        lambda data: data.__setitem__(wire.HEAD.size + 3, 1),
        lambda data: data.__setitem__(-1, ord("/")),
        lambda data: data.__setitem__(-1, ord("@")),
        lambda data: data.__setitem__(-1, ord("~")),
        lambda data: data.__setitem__(-1, 0),
    ],
)
def test_what_breaks_a_rule_is_no_message(change: Callable[[bytearray], None]) -> None:
    data = bytearray(wire.pack(0, 0, [PUT]))
    wire.parse(data)
    change(data)
    with pytest.raises(BadMessage):
        wire.parse(data)


def test_a_count_above_the_cap_is_no_message() -> None:
    with pytest.raises(BadMessage):
        wire.parse(wire.pack(0, 0, [wire.Drop(1)] * (wire.ENTRIES_MAX + 1)))


# ---- telling


def test_a_peer_is_told_all_at_link_up_and_then_what_changes() -> None:
    a, b = Machine(), Machine()
    a.attach(b"one")
    a.replica.peer_up("b", 5, True, 0.0)
    b.replica.peer_up("a", 9, True, 0.0)
    message = only(a.replica, 0.0)
    second = a.attach(b"two")
    assert a.replica.transmit(0.0) == [], "one message is under way"
    assert b.replica.receive("a", message, 0.0) == 0
    a.replica.answered("b", 0, 0.0)
    assert b.names() == [b"one"]
    assert b.replica.receive("a", only(a.replica, 0.0), 0.0) == 0
    a.replica.answered("b", 0, 0.0)
    [record] = [one for one in b.replica.records() if one.name == b"two"]
    assert record == second._replace(node="a", nd=9)
    a.replica.withdraw(second.serial)
    message = only(a.replica, 0.0)
    assert told(message) == [wire.Drop(second.serial)]
    assert b.replica.receive("a", message, 0.0) == 0
    assert b.replica.receive("a", message, 0.0) == 0, "to hear it twice does no harm"
    a.replica.answered("b", 0, 0.0)
    assert b.names() == [b"one"]
    assert a.replica.transmit(0.0) == []
    assert a.replica.next_timeout() is None
    assert a.replica.peers["b"].told_generation == a.replica.generation == 3
    assert len(a.replica.peers["b"].told) == 1


def test_a_node_without_names_says_nothing() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    a.replica.set_load(500)
    assert a.replica.transmit(0.0) == []


def test_what_came_and_went_is_not_told() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    a.replica.withdraw(a.attach(b"short").serial)
    assert a.replica.transmit(0.0) == []
    # Withdrawn while it is being told: told once more, as gone.
    record = a.attach(b"x")
    only(a.replica, 0.0)
    a.replica.withdraw(record.serial)
    a.replica.answered("b", 0, 0.0)
    assert told(only(a.replica, 0.0)) == [wire.Drop(record.serial)]


def test_many_names_go_in_several_messages() -> None:
    a, b = Machine(checked=False), Machine(checked=False)
    for number in range(NAMES_PER_NODE):
        a.attach(b"%d" % number + b"x" * 240)
    assert a.replica.attach(b"more", 1, 1, 0, 0) == errno.EAGAIN
    a.replica.peer_up("b", 5, True, 0.0)
    b.replica.peer_up("a", 9, True, 0.0)
    count = 0
    while messages := a.replica.transmit(0.0):
        assert len(messages[0][1]) <= wire.MESSAGE_MAX
        assert b.replica.receive("a", messages[0][1], 0.0) == 0
        a.replica.answered("b", 0, 0.0)
        count += 1
    assert count == 5
    assert len(b.names()) == NAMES_PER_NODE
    assert a.replica.peers["b"].told_generation == NAMES_PER_NODE


def test_what_is_refused_is_told_again_as_it_is_then() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    first = a.attach(b"one")
    only(a.replica, 0.0)
    a.replica.answered("b", -errno.EAGAIN, 0.0)
    assert a.replica.transmit(0.0) == []
    assert a.replica.next_timeout() == AGAIN_MIN
    a.replica.withdraw(first.serial)
    a.attach(b"two")
    entries = told(only(a.replica, AGAIN_MIN))
    # It may have arrived: EINTR and ENOSPC do not say how much of it did.
    assert entries[0] == wire.Drop(first.serial)
    assert [entry.name for entry in entries[1:] if isinstance(entry, wire.Put)] == [b"two"]
    now = AGAIN_MIN
    waits = []
    for _ in range(9):
        a.replica.answered("b", -errno.ENOSPC, now)
        when = a.replica.next_timeout()
        assert when is not None
        waits.append(when - now)
        now = when
        only(a.replica, now)
    assert waits[0] == pytest.approx(2 * AGAIN_MIN)
    assert waits[-1] == pytest.approx(AGAIN_MAX)
    a.replica.answered("b", 0, now)
    assert a.replica.next_timeout() is None


def test_a_node_that_takes_no_names_is_asked_seldom() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    a.attach(b"one")
    only(a.replica, 0.0)
    a.replica.answered("b", -errno.EBADF, 0.0)
    a.attach(b"two")
    assert a.replica.next_timeout() == DEAF_AGAIN
    assert len(told(only(a.replica, DEAF_AGAIN))) == 2
    assert a.counters["names_not_taken"] == 1


def test_names_that_come_and_go_without_end_cost_a_bounded_number_of_messages() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    sent = 0
    for step in range(10_000):
        now = step / 1000
        a.replica.withdraw(a.attach(b"flap").serial)
        record = a.attach(b"flap")
        for _ in a.replica.transmit(now):
            sent += 1
            a.replica.answered("b", 0, now)
        a.replica.withdraw(record.serial)
    assert sent <= SEND_BURST + 20 * 10 + 1
    assert len(a.replica.peers["b"].told) <= 2
    assert len(a.replica.peers["b"].due) <= 2


def test_a_peer_that_refuses_everything_costs_bounded_memory() -> None:
    a = Machine(checked=False)
    a.replica.peer_up("b", 5, True, 0.0)
    peer = a.replica.peers["b"]
    now = 0.0
    for _ in range(40):
        records = [a.attach(b"%d" % number) for number in range(500)]
        for _ in range(3):
            if a.replica.transmit(now):
                a.replica.answered("b", -errno.EAGAIN, now)
            now = max(now, a.replica.next_timeout() or now)
        for record in records:
            a.replica.withdraw(record.serial)
        assert len(peer.told) <= TOLD_MAX + wire.ENTRIES_MAX
        assert len(peer.due) <= TOLD_MAX + wire.ENTRIES_MAX


def test_load_is_told_alone_when_it_changes_much() -> None:
    a, b = Machine(), Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    b.replica.peer_up("a", 5, True, 0.0)
    a.attach(b"one")
    a.replica.set_load(100)
    for load, tells in ((100, True), (100 + LOAD_STEP - 1, False), (100 + LOAD_STEP, True), (10**9, True)):
        a.replica.set_load(load)
        messages = a.replica.transmit(0.0)
        assert bool(messages) == tells
        for _, message in messages:
            assert b.replica.receive("a", message, 0.0) == 0
            a.replica.answered("b", 0, 0.0)
    assert b.replica.load_of("a") == wire.LOAD_MAX


# ---- hearing


def test_what_a_node_said_goes_with_its_link() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    a.replica.peer_up("c", 6, True, 0.0)
    for node in ("b", "c"):
        assert a.replica.receive(node, wire.pack(4, 0, [PUT]), 0.0) == 0
    assert len(a.view) == 2
    a.replica.peer_down("b")
    assert {one.node for one in a.replica.records()} == {"c"}
    assert a.replica.receive("b", wire.pack(5, 0, [PUT]), 0.0) == errno.EPERM, "it is not up"
    a.replica.peer_up("b", 5, True, 0.0)
    assert len(a.view) == 1, "another link begins with nothing"
    assert a.replica.receive("b", wire.pack(0, 0, []), 0.0) == 0, "and its generation may be another boot's"


def test_a_node_speaks_for_itself_only() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    a.replica.peer_up("evil", 6, True, 0.0)
    assert a.replica.receive("b", wire.pack(1, 0, [PUT]), 0.0) == 0
    assert a.replica.receive("evil", wire.pack(1, 0, [wire.Drop(PUT.serial)]), 0.0) == 0
    assert a.replica.receive("evil", wire.pack(2, 0, [PUT._replace(pid=1)]), 0.0) == 0
    assert {(one.node, one.nd, one.pid) for one in a.replica.records()} == {("b", 5, 100), ("evil", 6, 1)}


def test_a_number_that_changes_its_record_is_another_record() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    assert a.replica.receive("b", wire.pack(1, 0, [PUT, PUT._replace(name=b"other"), PUT._replace(name=b"other")]), 0.0) == 0
    assert a.names() == [b"other"]
    assert len(a.replica) == 1


def test_caps_and_counters() -> None:
    a = Machine(checked=False)
    a.replica.peer_up("b", 5, True, 0.0)
    now = 0.0
    for first in range(0, 3 * NAMES_PER_NODE, wire.ENTRIES_MAX):
        puts = [PUT._replace(serial=first + number) for number in range(wire.ENTRIES_MAX)]
        answer = a.replica.receive("b", wire.pack(first, 0, puts), now)
        assert answer == (0 if first < NAMES_PER_NODE else errno.ENOSPC)
    assert len(a.view) == NAMES_PER_NODE
    assert a.counters["names_over_cap"] == 2 * NAMES_PER_NODE
    nodes = 0
    while len(a.replica) < NAMES_MAX:
        nodes += 1
        a.replica.peer_up(f"n{nodes}", 100 + nodes, False, now)
        for half in range(2):
            puts = [PUT._replace(serial=half * 512 + number) for number in range(512)]
            assert a.replica.receive(f"n{nodes}", wire.pack(half, 0, puts), now) == 0
    a.replica.peer_up("last", 99, True, now)
    assert a.replica.receive("last", wire.pack(0, 0, [PUT]), now) == errno.ENOSPC
    a.attach(b"own names have room of their own")
    a.replica.peer_down("n1")
    assert a.replica.receive("last", wire.pack(0, 0, [PUT]), now) == 0


def test_too_many_messages_are_refused() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    answers = Counter(a.replica.receive("b", wire.pack(0, 0, []), 0.0) for _ in range(int(TAKE_BURST) + 50))
    assert answers == {0: TAKE_BURST, errno.EAGAIN: 50}
    assert a.counters["names_too_often"] == 50


def test_records_that_come_and_go_are_bounded_however_few_messages_they_are_in() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    serial, taken = 0, 0
    for second in range(10):
        for step in range(35):
            puts = [PUT._replace(serial=serial + number) for number in range(wire.ENTRIES_MAX // 2)]
            drops = [wire.Drop(put.serial) for put in puts]
            answer = a.replica.receive("b", wire.pack(0, 0, [*puts, *drops]), second + step / 35)
            assert answer in (0, -errno.EAGAIN, errno.EAGAIN)
            taken += 0 if answer else wire.ENTRIES_MAX
            serial += len(puts)
    assert HEAR_BURST + 9 * HEAR_RATE <= taken <= HEAR_BURST + 10 * HEAR_RATE
    assert a.counters["names_too_many"] + taken // wire.ENTRIES_MAX == 350


def test_an_honest_node_tells_no_more_than_others_hear() -> None:
    a, b = Machine(), Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    b.replica.peer_up("a", 6, True, 0.0)
    told, now = 0, 0.0
    while now < 3.0:
        for name in list(a.replica.own)[:100]:
            a.replica.withdraw(name)
        for number in range(100):
            a.attach(b"%d" % number)
        for _, message in a.replica.transmit(now):
            told += len(wire.parse(message).entries)
            assert b.replica.receive("a", message, now) == 0
            a.replica.answered("b", 0, now)
        now += 0.05
    assert told <= TELL_BURST + 3.1 * TELL_RATE
    while (at := a.replica.next_timeout()) is not None:
        now = max(now, at)
        for _, message in a.replica.transmit(now):
            assert b.replica.receive("a", message, now) == 0
            a.replica.answered("b", 0, now)
    assert sorted(b.names()) == sorted(record.name for record in a.replica.own.values())


def test_what_makes_no_sense_changes_nothing() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, True, 0.0)
    assert a.replica.receive("b", wire.pack(5, 0, [PUT]), 0.0) == 0
    broken = wire.pack(6, 0, [wire.Drop(PUT.serial), PUT._replace(serial=8)])[:-1]
    assert a.replica.receive("b", broken, 0.0) == errno.EBADMSG
    assert a.replica.receive("b", wire.pack(4, 0, [wire.Drop(PUT.serial)]), 0.0) == errno.EBADMSG, "its generation went back"
    assert a.names() == [b"clock"]
    assert a.counters["names_malformed"] == 2


def test_a_node_that_is_not_believed_is_not_shown() -> None:
    a = Machine()
    a.replica.peer_up("b", 5, False, 0.0)
    assert a.replica.receive("b", wire.pack(1, 0, [PUT]), 0.0) == 0
    assert (a.view, len(a.replica)) == ({}, 1)
    a.replica.believe("b", True)
    assert a.names() == [b"clock"]
    a.replica.believe("b", False)
    assert a.view == {}
    assert a.replica.receive("b", wire.pack(2, 0, [wire.Drop(7)]), 0.0) == 0
    a.replica.peer_down("b")
    assert len(a.replica) == 0


# ---- own names, and choosing


def test_one_name_may_have_several_owners_but_one_channel_has_it_once() -> None:
    a = Machine()
    a.attach(b"x", 100, 20)
    assert a.replica.attach(b"x", 100, 20, 0, 0) == errno.EEXIST
    a.attach(b"x", 100, 21)
    a.attach(b"x", 101, 20)
    for bad in (b"", b".", b"..", b"a/b", b"a\0", b"a@b", b"a~b", b"x" * 256):
        assert a.replica.attach(bad, 1, 1, 0, 0) == errno.EINVAL


def test_choices() -> None:
    a = Machine()
    for nd, node in enumerate(("b", "c"), 5):
        a.replica.peer_up(node, nd, True, 0.0)
        assert a.replica.receive(node, wire.pack(1, 100 * (10 - nd), [PUT]), 0.0) == 0  # b has 500, c 400

    def chosen(text: bytes, times: int = 1) -> list[str]:
        found = [choose(a.replica, text, "a") for _ in range(times)]
        return ["none" if one is None else one.node or "a" for one in found]

    assert chosen(b"clock", 2) == ["c", "c"], "the least load"
    assert chosen(b"clock~roundrobin", 3) == ["b", "c", "b"]
    assert chosen(b"clock@b") == ["b"]
    assert chosen(b"clock@a") == ["none"]
    assert chosen(b"clock@nobody") == ["none"]
    assert chosen(b"other") == ["none"]
    a.replica.peer_suspect("c", True)
    assert chosen(b"clock", 2) == ["b", "b"], "a suspect node is the last choice"
    assert chosen(b"clock@c") == ["c"]
    a.replica.peer_suspect("c", False)
    a.replica.set_load(450)
    a.attach(b"clock")
    assert chosen(b"clock") == ["a"], "here first"
    assert chosen(b"clock~leastload", 2) == ["c", "c"]
    a.replica.set_load(400)
    assert sorted(chosen(b"clock~leastload", 2)) == ["a", "c"], "equals in turn"
    assert chosen(b"clock@a") == ["a"]
    for bad in (b"clock~", b"clock~best", b"clock@"):
        with pytest.raises(OSError) as raised:
            split(bad)
        assert raised.value.errno == errno.EINVAL


# ---- histories


class Cluster:
    """Replicas whose messages are lost, refused and late, with links that come and go; in virtual time without a world."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names = ["a", "b", "c", "d"]
        self.machines = {name: Machine() for name in self.names}
        self.links: dict[tuple[str, str], int] = {}
        self.wire: list[tuple[int, str, str, bytes]] = []
        """session, from, to, message"""
        self.sessions = 0
        self.now = 0.0

    def join(self, one: str, two: str) -> None:
        if (one, two) in self.links:
            return
        self.sessions += 1
        for here, there in ((one, two), (two, one)):
            self.links[here, there] = self.sessions
            self.machines[here].replica.peer_up(there, self.names.index(there) + 1, True, self.now)

    def part(self, one: str, two: str) -> None:
        for here, there in ((one, two), (two, one)):
            if self.links.pop((here, there), None):
                self.machines[here].replica.peer_down(there)

    def restart(self, name: str) -> None:
        for other in self.names:
            if other != name:
                self.part(name, other)
        self.machines[name] = Machine()

    def send(self) -> None:
        for name, machine in self.machines.items():
            for to, message in machine.replica.transmit(self.now):
                self.wire.append((self.links[name, to], name, to, message))

    def deliver(self, good: bool) -> None:
        session, sender, to, message = self.wire.pop(self.chance.randrange(len(self.wire)))
        if self.links.get((sender, to)) != session:
            return  # it ended with its link
        if not good and self.chance.random() < 0.3:
            refused = self.chance.choice([errno.EAGAIN, errno.EINTR, errno.ENOSPC])
            if refused != errno.EAGAIN:
                self.machines[to].replica.receive(sender, message, self.now)
            self.machines[sender].replica.answered(to, -refused, self.now)
            return
        code = self.machines[to].replica.receive(sender, message, self.now)
        assert code == 0
        self.machines[sender].replica.answered(to, -code, self.now)

    def step(self) -> None:
        chance = self.chance
        one, two = chance.sample(self.names, 2)
        machine = self.machines[one]
        what = chance.random()
        if what < 0.3:
            machine.replica.attach(chance.choice([b"x", b"y", b"z"]), chance.randrange(1, 9), chance.randrange(1, 9), 0, 0)
        elif what < 0.5 and machine.replica.own:
            machine.replica.withdraw(chance.choice(list(machine.replica.own)))
        elif what < 0.6:
            self.join(one, two)
        elif what < 0.66:
            self.part(one, two)
        elif what < 0.68:
            self.restart(one)
        elif self.wire:
            self.deliver(False)
        self.now += chance.random() / 5
        self.send()
        self.check()

    def check(self) -> None:
        """No ghost: what one lists of another is of its life and link of now."""
        for name, machine in self.machines.items():
            for record in machine.replica.records():
                assert not record.node or (name, record.node) in self.links


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_histories_end_with_one_table(first: int) -> None:
    for seed in range(first, first + 50):
        cluster = Cluster(seed)
        for _ in range(150):
            cluster.step()
        for one in cluster.names:
            for two in cluster.names:
                if one < two:
                    cluster.join(one, two)
        for _ in range(400):
            cluster.now += 0.1
            cluster.send()
            while cluster.wire:
                cluster.deliver(True)
            cluster.check()
        wanted = {(name, record.serial, record.name) for name in cluster.names for record in cluster.machines[name].replica.own.values()}
        for name, machine in cluster.machines.items():
            found = {(record.node or name, record.serial, record.name) for record in machine.replica.records()}
            assert found == wanted, f"seed {seed}: {name}"
            assert machine.replica.next_timeout() is None, f"seed {seed}: {name}"
