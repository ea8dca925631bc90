"""Programs on simulated nodes that attach and withdraw global names, and others that watch names and nodes; and whether what they see is
what docs/protocol/names.md promises. Used by `qnetpy.testing.scenario` and by tests.

`NamesTruth` knows what was really attached. A `NamesWork` is one boot's programs. `NamesTruth.check` looks at all nodes, between any two
turns:

- no ghost: a node lists names of another only while it calls that one up or suspect, and of the boot that it has a link with;
- nobody made anything up: each name listed was attached by that boot, by that process and channel;
- nothing outlives its node: `down_after` and half a second after a power-off nobody lists its names;
- the view that a subscriber has from events alone is the table, whenever he has read all that there is; for names, and for nodes.

`NamesTruth.differences` says where nodes do not list the same, for when they must.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

from qnetpy.nodes import NodeState
from qnetpy.testing.node import SimNode
from qnetpy.testing.world import World
from resmgr.channel import CHID_NAMES, CHID_NODES, CHID_PATHMGR, ND_LOCAL, PID_SYSTEM, Connection, Credentials
from resmgr.dispatch import Buffer
from resmgr.iomsg import Connect, Entry, Io, request
from resmgr.names import protocol
from resmgr.names.protocol import NameChange, Record, Scope
from resmgr.nodes.protocol import NodeChange
from resmgr.nodes.protocol import parse_event as parse_node_event
from resmgr.subscription import READ, READ_MAX, REQUEST, WATCH, split

NAMES = (b"clock", b"printer", b"log")
SLACK = 0.5
OWNERS_MAX = 6
"""Programs of one node that have a name."""

Wrong = Callable[[str], object]


class NamesTruth:
    """What programs of a world have attached, by the boot id of their node."""

    def __init__(self, world: World, wrong: Wrong) -> None:
        self.world = world
        self.wrong = wrong
        self.works: dict[SimNode, NamesWork] = {}
        self._by_boot: dict[bytes, NamesWork] = {}
        self._dead_since: dict[SimNode, float] = {}
        self.checks = 0
        self.stopped = False

    def check(self) -> None:
        """See the head of this file."""
        self.checks += 1
        for node, work in self.works.items():
            if node.dead:
                self._dead_since.setdefault(node, self.world.now)
            else:
                self._by_boot[node.qnet.boot_id] = work
        for node, work in self.works.items():
            if not node.dead:
                for text in (*self._ghosts(node), *work.strange()):
                    self.wrong(f"{node.name}: {text} at {self.world.now:.6f}")

    def _ghosts(self, node: SimNode) -> Iterator[str]:
        for record in node.names.globals.replica.records():
            if not record.node:
                continue
            other = node.qnet.nodes.get(record.node)
            if other is None or not other.reachable:
                yield f"lists {record.name!r} of {record.node}, which is {'unknown' if other is None else other.state.value}"
                continue
            if record.nd != other.nd:
                yield f"lists {record.name!r} of {record.node} at descriptor {record.nd}"
            owner = self._by_boot.get(other.boot_id)
            if owner is None:
                continue  # it was copied since the last look, and is another boot now
            if owner.attached.get(record.serial) != record._replace(node="", nd=0):
                yield f"lists {record}, which that boot of {record.node} never attached"
            dead = self._dead_since.get(owner.node)
            if dead is not None and self.world.now > dead + node.qnet.settings.timers.down_after + SLACK:
                yield f"lists {record.name!r} of {record.node}, which is off since {dead:.3f}"

    def differences(self) -> list[str]:
        """Where live nodes that see each other do not list what each has."""
        live = [work for node, work in self.works.items() if not node.dead]
        found = []
        for here in live:
            table: dict[str, set[Record]] = {}
            for record in here.node.names.globals.replica.records():
                table.setdefault(record.node, set()).add(record._replace(node="", nd=0))
            for there in live:
                wanted = set(there.node.names.globals.replica.own.values())
                listed = table.pop("" if here is there else there.node.name, set())
                if listed != wanted:
                    found.append(f"{here.node.name} lists {sorted(listed)} of {there.node.name}, which has {sorted(wanted)}")
            found += [f"{here.node.name} lists names of {name}" for name in table]
        return found

    def stop(self) -> None:
        """Nothing changes any more."""
        self.stopped = True
        for work in self.works.values():
            work.going = False


class _View:
    """A subscriber: what he knows, from events alone."""

    def __init__(self, node: SimNode, chid: int, what: bytes, apply: Callable[[bytes], None], chance: random.Random) -> None:
        self.node = node
        self.waiting = False
        """He has read all, and waits for more."""
        self._apply = apply
        self._chance = chance
        self._connection = node.system.kernel.connect(ND_LOCAL, PID_SYSTEM, chid, Credentials(0, 0, (), 90))
        self._connection.submit([REQUEST.pack(WATCH, 0, 0) + what], 0, lambda status, reply: None)
        self._read()

    def _read(self) -> None:
        self.waiting = True
        self._connection.submit([REQUEST.pack(READ, 0, 0)], self._chance.choice([300, READ_MAX]), self._got)

    def _got(self, status: int, reply: Buffer) -> None:
        self.waiting = False
        if status < 0:
            if not self.node.dead:
                raise AssertionError(f"{self.node.name}: reading events failed with {status}")
            return
        for event in split(reply):
            self._apply(event)
        pause = self._chance.choice([0.0, 0.0, 0.001, 0.3])
        self.node.view.call_at(self.node.view.now() + pause, self._read)


class NamesWork:
    """The programs of one boot of a node: owners that come and go about every *pause* seconds, and two subscribers."""

    def __init__(self, truth: NamesTruth, node: SimNode, chance: random.Random, pause: float = 0.3) -> None:
        truth.works[node] = self
        self.truth = truth
        self.node = node
        self.chance = chance
        self.pause = pause
        self.going = True
        self.attached: dict[int, Record] = {}
        """All that this boot ever attached."""
        self._pids = count(200)
        self._owners: list[Connection] = []
        self._names: set[Record] = set()
        self._nodes: dict[str, tuple[NodeChange, str]] = {}
        self.events = 0
        pattern = protocol.pack_pattern(Scope.BOTH, "*")
        self._views = (
            _View(node, CHID_NAMES, pattern, self._name, chance),
            _View(node, CHID_NODES, b"", self._node, chance),
        )
        for _ in range(chance.randrange(3)):
            self.attach()
        self._later()

    def _later(self) -> None:
        self.node.view.call_at(self.node.view.now() + self.chance.expovariate(1 / self.pause), self._step)

    def _step(self) -> None:
        if not self.going:
            return
        for _ in range(self.chance.choice([1, 1, 1, 4])):
            if self._owners and (len(self._owners) >= OWNERS_MAX or self.chance.random() < 0.5):
                self.withdraw()
            else:
                self.attach()
        self._later()

    def attach(self, name: bytes = b"") -> None:
        """A new program attaches one of the names."""
        pid, name = next(self._pids), name or self.chance.choice(NAMES)
        connection = self.node.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES, Credentials(0, 0, (), pid))

        def done(status: int, reply: Buffer) -> None:
            assert status == 0, status
            [record] = [one for one in self.node.names.globals.replica.own.values() if one.pid == pid]
            self.attached[record.serial] = record
            self._owners.append(connection)

        connection.submit([REQUEST.pack(protocol.ATTACH_GLOBAL, 0, 20) + name], 0, done)

    def withdraw(self) -> None:
        """One of them dies."""
        self._owners.pop(self.chance.randrange(len(self._owners))).close()

    # What the subscribers know

    def _name(self, data: bytes) -> None:
        self.events += 1
        event = protocol.parse_event(data)
        if event.kind is NameChange.OVERFLOW:
            self._names.clear()
        elif event.kind is not NameChange.CURRENT:
            if (event.record in self._names) == (event.kind is NameChange.APPEARED):
                self.truth.wrong(f"{self.node.name}: {event.kind.name} {event.record} is told twice")
            self._names ^= {event.record}

    def _node(self, data: bytes) -> None:
        self.events += 1
        event = parse_node_event(data)
        if event.kind is NodeChange.OVERFLOW:
            self._nodes.clear()
        elif event.kind is not NodeChange.CURRENT:
            before = self._nodes.get(event.node)
            if event.kind is NodeChange.BACK and (before is None or before[0] is not NodeChange.SUSPECT):
                self.truth.wrong(f"{self.node.name}: {event.node} is back and was not suspect")
            another = event.kind is NodeChange.RESTARTED
            came = another or event.kind is NodeChange.UP
            if before is not None and came and (before[0] is not NodeChange.DOWN or (before[1] != event.boot) != another):
                self.truth.wrong(f"{self.node.name}: {event} came after {before}")
            self._nodes[event.node] = (_state(event.kind), event.boot)

    def strange(self) -> Iterator[str]:
        """Where the subscribers' views are not the tables."""
        watches = self.node.names.watches, self.node.system.nodes.watches
        if self._views[0].waiting and not watches[0].waiting() and self._names != set(self.node.names.records()):
            yield f"a subscriber knows {sorted(self._names)}, the table has {sorted(self.node.names.records())}"
        if self._views[1].waiting and not watches[1].waiting():
            table = {one.name: (_STATES.get(one.state, NodeChange.DOWN), one.boot_id.hex()) for one in self.node.qnet.nodes if one.starts}
            if self._nodes != table:
                yield f"a subscriber knows the nodes {self._nodes}, the table has {table}"

    def look_up(self, name: bytes, at: str) -> tuple[int, int, int] | None:
        """Where a program of this node that opens `NAME@at` is sent: nd, pid, chid."""
        found: list[tuple[int, int, int]] = []

        def done(status: int, reply: Buffer) -> None:
            if status == 0:
                target = Entry.parse(reply).target
                found.append((target.nd, target.pid, target.chid))

        connection = self.node.system.kernel.connect(ND_LOCAL, PID_SYSTEM, CHID_PATHMGR, Credentials(0, 0, (), 91))
        path = protocol.PREFIX_GLOBAL + b"/" + name + b"@" + at.encode()
        connection.submit([request(Io.CONNECT, Connect.LOOKUP) + path], 8192, done)
        connection.close()
        return found[0] if found else None


_STATES = {NodeState.UP: NodeChange.UP, NodeState.SUSPECT: NodeChange.SUSPECT}


def _state(kind: NodeChange) -> NodeChange:
    return NodeChange.UP if kind in (NodeChange.BACK, NodeChange.RESTARTED) else kind
