"""Subscriptions: a snapshot, then each change once; bounded; pulses; of names, and of nodes."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from resmgr.aio import Process, enter, open_process
from resmgr.channel import CHID_NAMES, CHID_NODES, ND_LOCAL, PID_SYSTEM, Channel, Connection, Credentials, Kernel, Nd, Pulse
from resmgr.client import Client
from resmgr.errors import BadMessage, ResmgrError
from resmgr.names import protocol as names
from resmgr.names.manager import NameDirectory
from resmgr.names.protocol import NOBODY, NameChange, NameEvent, Record, Scope
from resmgr.nodes import protocol as nodes
from resmgr.nodes.aio import node_events as node_events_trio
from resmgr.nodes.aio import wait_up as wait_up_trio
from resmgr.nodes.board import NodeBoard
from resmgr.nodes.client import node_events, wait_up
from resmgr.nodes.protocol import NodeChange, NodeEvent
from resmgr.runner import open_dispatch
from resmgr.server import Pulse as ServerPulse
from resmgr.subscription import NOWAIT, READ, READ_MAX, REQUEST, WATCH, split
from resmgr.testing.virtual import VirtualDispatch
from resmgr.transport.unix import UnixServer
from resmgr.watches import QUEUE_MAX, WATCHES_PER_USER, EventQueue

USER = Credentials(1000, 1000, (), 77)
ROOT = Credentials(0, 0, (), 78)

# ---- the queue


class Table:
    """A table of numbers, and a subscriber's view of it."""

    def __init__(self) -> None:
        self.there: dict[int, None] = {}
        self.queue = EventQueue(lambda: self.there, lambda one: 1, lambda one: True, self.pack, 3, 4)
        self.view: set[int] = set()
        self.current = False
        self.seen: Counter[int] = Counter()

    @staticmethod
    def pack(kind: int, number: int | None) -> bytes:
        return bytes((kind,)) + (b"" if number is None else number.to_bytes(4, "big"))

    def add(self, number: int) -> None:
        self.there[number] = None
        self.queue.push(1, number)

    def remove(self, number: int) -> None:
        del self.there[number]
        self.queue.push(2, number)

    def read(self, size: int) -> int:
        count, data = self.queue.take(size)
        events = list(split(data))
        assert len(events) == count
        for event in events:
            kind, number = event[0], int.from_bytes(event[1:], "big")
            self.seen[kind] += 1
            if kind == 4:
                self.view, self.current = set(), False
            elif kind == 3:
                assert not self.current
                self.current = True
            else:
                assert (number in self.view) == (kind == 2), "each change is told once"
                self.view ^= {number}
        return count


@pytest.mark.parametrize("seed", range(20))
def test_who_applies_the_events_has_the_table(seed: int) -> None:
    chance = random.Random(seed)
    table = Table()
    number = 0
    for _ in range(400):
        for _ in range(chance.choice([1, 1, 5, 400])):
            if table.there and chance.random() < 0.5:
                table.remove(chance.choice(list(table.there)))
            else:
                number += 1
                table.add(number)
        assert len(table.queue) <= QUEUE_MAX + 1
        for _ in range(chance.choice([0, 1, 3])):
            if table.queue:
                assert table.read(chance.choice([7, 20, 1000]))
        if chance.random() < 0.1:
            while table.queue:
                table.read(5000)
            assert table.view == set(table.there)
            assert table.current
    assert table.seen[3] <= table.seen[4] + 1
    assert table.queue.overflows >= table.seen[4]


def test_the_histories_above_overflow() -> None:
    table = Table()
    table.read(10)
    for number in range(QUEUE_MAX + 2):
        table.add(number)
    assert not len(table.queue)
    assert table.read(3) == 1, "OVERFLOW fits alone"
    assert table.read(100_000) == QUEUE_MAX + 3
    assert table.view == set(table.there)


def test_a_buffer_for_not_even_one_event_gets_none() -> None:
    table = Table()
    table.add(1)
    assert table.queue.take(6) == (0, b"")
    assert table.queue


# ---- formats


def test_events_are_read_as_they_were_made() -> None:
    record = Record(Scope.GLOBAL, b"cl\xffock", "node-b", 0x10005, 100, 20, 1000, 1001, 2**64 - 1)
    for event in (NameEvent(NameChange.WITHDRAWN, record), NameEvent(NameChange.CURRENT)):
        data = names.pack_event(event)
        assert names.parse_event(data) == event
        for length in range(len(data)):
            with pytest.raises(BadMessage):
                names.parse_event(data[:length])
    assert NameEvent(NameChange.APPEARED, record).name == "cl\udcffock"
    with pytest.raises(BadMessage):
        names.parse_event(b"\x09" + names.pack_event(NameEvent(NameChange.CURRENT))[1:])
    with pytest.raises(BadMessage):
        names.parse_event(b"\x01\x04" + names.pack_event(NameEvent(NameChange.CURRENT))[2:])
    for node in (NodeEvent(NodeChange.DOWN, "b", 5, "ab" * 16, 3, "silent"), NodeEvent(NodeChange.OVERFLOW)):
        packed = nodes.pack_event(node)
        assert nodes.parse_event(packed)[0] is node.kind
        for length in range(len(packed)):
            with pytest.raises(BadMessage):
                nodes.parse_event(packed[:length])
    assert nodes.parse_event(nodes.pack_event(NodeEvent(NodeChange.DOWN, "b", 5, "ab" * 16, 3, "silent"))).boot == "ab" * 16
    for bad in (b"\0", b"\0\x05ab"):
        with pytest.raises(BadMessage):
            list(split(bad))


# ---- over messages


class Asker:
    """A program of this node in the same kernel."""

    def __init__(self, kernel: Kernel, chid: int, credentials: Credentials = USER) -> None:
        self.connection: Connection = kernel.connect(ND_LOCAL, PID_SYSTEM, chid, credentials)
        self.answers: list[tuple[int, bytes]] = []

    def ask(self, operation: int, argument: int = 0, chid: int = 0, body: bytes = b"", room: int = READ_MAX) -> int | None:
        """The answer's status, None if there is none yet."""
        before = len(self.answers)
        self.connection.submit(
            [REQUEST.pack(operation, argument, chid) + body], room, lambda status, reply: self.answers.append((status, bytes(reply)))
        )
        return self.answers[-1][0] if len(self.answers) > before else None

    def events(self) -> Iterator[bytes]:
        yield from split(self.answers[-1][1])


class Machine:
    def __init__(self) -> None:
        self.clock = VirtualDispatch(0)
        self.kernel = Kernel(self.clock, "here")
        self.board = NodeBoard(self.kernel)
        self.names = NameDirectory(self.kernel, self.board)

    def turn(self) -> None:
        self.clock.run_for(0.0)


BOOTS = [bytes((number,)) * 16 for number in range(1, 4)]


def test_events_of_nodes_begin_with_what_there_is() -> None:
    here = Machine()
    here.board.up("b", Nd(5), BOOTS[0])
    here.board.up("c", Nd(6), BOOTS[0])
    here.board.down("c", "left")
    here.board.suspect("b", "silent")
    asker = Asker(here.kernel, CHID_NODES)
    assert asker.ask(READ) == -errno.ENOENT
    assert asker.ask(WATCH) == 0
    assert asker.ask(WATCH) == -errno.EBUSY
    assert asker.ask(READ) == 3
    found = [nodes.parse_event(event) for event in asker.events()]
    assert [(one.kind, one.node, one.nd, one.reason) for one in found] == [
        (NodeChange.SUSPECT, "b", 5, "silent"),
        (NodeChange.DOWN, "c", 6, "left"),
        (NodeChange.CURRENT, "", 0, ""),
    ]
    assert found[0].boot == BOOTS[0].hex()
    assert asker.ask(READ, NOWAIT) == -errno.EAGAIN
    assert asker.ask(READ) is None
    assert asker.ask(READ) == -errno.EBUSY, "one reader at a time"
    here.board.back("b")
    here.board.back("b")
    here.board.down("b", "silent")
    here.board.suspect("b", "carrier lost")
    here.board.up("b", Nd(5), BOOTS[0])
    here.board.down("b", "silent")
    here.board.up("b", Nd(5), BOOTS[1])
    here.turn()
    kinds = [nodes.parse_event(event).kind.name for event in asker.events()]
    assert kinds == ["BACK", "DOWN", "UP", "DOWN", "RESTARTED"]
    assert nodes.parse_event(list(asker.events())[-1]).starts == 3


def test_a_number_means_one_node() -> None:
    here = Machine()
    here.board.up("b", Nd(1), BOOTS[0])
    here.board.down("b", "left")
    here.board.up("c", Nd(1), BOOTS[0])
    here.board.up("b", Nd(2), BOOTS[1])
    asker = Asker(here.kernel, CHID_NODES)
    asker.ask(WATCH)
    asker.ask(READ)
    assert [(one.node, one.nd) for one in map(nodes.parse_event, asker.events())] == [("b", 2), ("c", 1), ("", 0)]
    here.board.down("b", "left")
    here.board.up("d", Nd(2), BOOTS[0])
    assert [(one.name, one.nd) for one in here.board] == [("b", 0), ("c", 1), ("d", 2)]


def test_a_reader_that_gives_up_loses_nothing() -> None:
    here = Machine()
    asker = Asker(here.kernel, CHID_NODES)
    asker.ask(WATCH)
    asker.ask(READ)
    pending = asker.connection.submit([REQUEST.pack(READ, 0, 0)], READ_MAX, lambda status, reply: asker.answers.append((status, b"")))
    assert pending is not None
    pending.unblock()
    assert asker.answers[-1][0] == -errno.EINTR
    here.board.up("b", Nd(5), BOOTS[0])
    here.turn()
    assert asker.ask(READ) == 1
    asker.connection.close()
    assert len(here.board.watches) == 0


def test_a_channel_gets_a_pulse_when_there_is_something_to_read() -> None:
    here = Machine()
    pulses: list[Pulse] = []
    channel = here.kernel.channel(lambda message: message.error(errno.ENOSYS), on_pulse=pulses.append, pid=77)
    asker = Asker(here.kernel, CHID_NODES)
    assert asker.ask(WATCH, 200, channel.chid) == -errno.EINVAL, "no code of a pulse"
    assert asker.ask(WATCH, 9, channel.chid) == 0
    assert [(one.code, one.value >> 32) for one in pulses] == [(9, NodeChange.CURRENT)]
    here.board.up("b", Nd(5), BOOTS[0])
    here.turn()
    assert len(pulses) == 1, "he was told, and has not read"
    assert asker.ask(READ) == 2
    here.board.suspect("b", "silent")
    here.board.down("b", "silent")
    here.turn()
    assert [(one.value >> 32, one.value & 0xFFFFFFFF) for one in pulses[1:]] == [(NodeChange.SUSPECT, 5)]
    assert asker.ask(READ) == 2
    assert asker.ask(READ, NOWAIT) == -errno.EAGAIN
    here.board.up("b", Nd(5), BOOTS[1])
    here.turn()
    assert len(pulses) == 3
    _close(asker, channel)


def _close(asker: Asker, channel: Channel) -> None:
    asker.connection.close()
    channel.destroy()


def test_a_subscriber_that_does_not_read_is_told_to_begin_again() -> None:
    here = Machine()
    asker = Asker(here.kernel, CHID_NODES)
    asker.ask(WATCH)
    asker.ask(READ)
    here.board.up("b", Nd(5), BOOTS[0])
    for _ in range(QUEUE_MAX):
        here.board.suspect("b", "silent")
        here.board.back("b")
    here.turn()
    assert here.board.watches.overflows() == 1
    assert asker.ask(READ) == 3
    assert [nodes.parse_event(event).kind.name for event in asker.events()] == ["OVERFLOW", "UP", "CURRENT"]


def test_subscriptions_are_capped() -> None:
    here = Machine()
    mine = [Asker(here.kernel, CHID_NODES) for _ in range(WATCHES_PER_USER + 1)]
    assert Counter(one.ask(WATCH) for one in mine) == {0: WATCHES_PER_USER, -errno.EAGAIN: 1}
    assert Asker(here.kernel, CHID_NODES, ROOT).ask(WATCH) == 0
    mine[0].connection.close()
    assert mine[-1].ask(WATCH) == 0
    for bad in (b"", b"x"):
        assert mine[-1].ask(99, body=bad) == (-errno.EINVAL if bad else -errno.ENOSYS)


def test_names_of_both_scopes_are_watched_by_pattern() -> None:
    here = Machine()
    here.board.up("b", Nd(5), BOOTS[0])
    owner = Asker(here.kernel, CHID_NAMES, ROOT)
    assert owner.ask(names.ATTACH_GLOBAL, chid=20, body=b"clock") == 0
    assert owner.ask(names.ATTACH, chid=21, body=b"clock") == 0
    assert owner.ask(names.ATTACH, chid=21, body=b"other") == 0
    asker = Asker(here.kernel, CHID_NAMES)
    for bad in (b"", b"\0x", b"\x04x"):
        assert asker.ask(WATCH, body=bad) == -errno.EINVAL
    assert asker.ask(WATCH, body=names.pack_pattern(Scope.BOTH, "clo*")) == 0
    assert asker.ask(READ) == 3
    found = [names.parse_event(event) for event in asker.events()]
    assert {(one.record.scope, one.record.chid) for one in found[:2]} == {(Scope.LOCAL, 21), (Scope.GLOBAL, 20)}
    assert found[2] == NameEvent(NameChange.CURRENT, NOBODY)
    assert asker.ask(READ) is None
    owner.ask(names.DETACH, body=b"other")
    here.turn()
    assert len(asker.answers) == 5, "that was not asked for"
    owner.connection.close()
    here.turn()
    assert [names.parse_event(event).kind for event in asker.events()] == [NameChange.WITHDRAWN] * 2


async def _wait_for_nodes(path: str, process: Process, board: NodeBoard, kernel: Kernel) -> None:
    """b is down and c was never there: a Trio program and a blocking one wait for both."""

    def wait() -> None:
        with Client(path) as client:
            with pytest.raises(ResmgrError) as raised:
                wait_up(client, "b", "here", timeout=0.05)
            assert raised.value.errno == errno.ETIMEDOUT
            wait_up(client, "b", "c", "here", timeout=10)

    async def change() -> None:
        for name, when in (("c", 0.0), ("b", 0.1)):
            await trio.sleep(when)
            enter(kernel, lambda: board.up(name, Nd(len(name)), BOOTS[1]))  # noqa: B023  # called at once

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, wait)
        nursery.start_soon(change)
        await wait_up_trio(process.kernel, process.credentials, "here", "b", "c")
        assert [node.reachable for node in board] == [True, True]


@pytest.mark.host
async def test_programs_hear_of_nodes(tmp_path: Path) -> None:
    """A blocking one by pulses, a Trio one by an iterator; neither needs to know which network there is."""
    async with open_dispatch() as dispatch:
        kernel = Kernel(dispatch, "here")
        board = NodeBoard(kernel)
        server = UnixServer(dispatch, kernel, tmp_path / "socket")
        ready = trio.Event()

        def pulses() -> list[str]:
            found: list[str] = []
            with Client(server.path) as client:
                channel = client.channel()
                with node_events(client, channel=channel, code=7) as events:
                    while len(found) < 3:
                        pulse = channel.receive(timeout=10)
                        assert isinstance(pulse, ServerPulse)
                        assert pulse.code == 7
                        while got := events.read(0):
                            found += [f"{one.kind.name} {one.node}".strip() for one in got]
                        trio.from_thread.run_sync(ready.set)
            return found

        async def change() -> None:
            await ready.wait()
            enter(kernel, lambda: board.up("b", Nd(5), BOOTS[0]))
            enter(kernel, lambda: board.down("b", "left"))

        heard: list[str] = []
        try:
            with trio.fail_after(20):
                async with open_process(server.path) as process, trio.open_nursery() as nursery:
                    nursery.start_soon(change)
                    assert await trio.to_thread.run_sync(pulses) == ["CURRENT", "UP b", "DOWN b"]
                    with node_events_trio(process.kernel, process.credentials) as events:
                        async for event in events:
                            heard.append(f"{event.kind.name} {event.node} {event.reason}".strip())
                            if event.kind is NodeChange.CURRENT:
                                break
                    with trio.move_on_after(0.05), node_events_trio(process.kernel, process.credentials) as events:
                        async for _ in events:
                            pass
                    await _wait_for_nodes(server.path, process, board, kernel)
            assert heard == ["DOWN b left", "CURRENT"]
            with trio.fail_after(5):
                while len(board.watches):  # noqa: ASYNC110  # the daemon's business
                    await trio.sleep(0.001)
        finally:
            server.close()
