"""What nodes are asked, and what becomes of what they answer wrongly."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

import pytest

from resmgr.access import MappedUser
from resmgr.channel import Credentials, Kernel
from resmgr.dispatch import Buffer
from resmgr.errors import Misuse
from resmgr.iofunc.node import VALUE_WRITE_MAX, Directory, Node, TreeManager, Value
from resmgr.iofunc.waiting import PARKED_PER_CLIENT, Later
from resmgr.iomsg import OFFSET_APPEND, Connect, Target
from resmgr.iorequest import pack_devctl, pack_notify, pack_read, pack_write
from resmgr.relay import Descriptors, ReadDone
from resmgr.testing.ioclient import Begun, IoClient, fails
from resmgr.testing.virtual import VirtualDispatch


class Wrong(Node):
    """Answers everything with `answer`, whatever that is."""

    mode = stat.S_IFREG | 0o666

    def __init__(self) -> None:
        self.answer: Any = b""  # what a careless author returns
        self.calls: list[tuple[object, ...]] = []

    def size(self) -> int:
        return 100

    def read(self, state: object | None, offset: int, size: int) -> Buffer | Later[Buffer] | None:
        answer: Buffer | Later[Buffer] | None = self.answer
        return answer

    def write(self, state: object | None, offset: int, data: Buffer) -> int | Later[int] | None:
        self.calls.append(("write", offset, len(data)))
        answer: int | Later[int] | None = self.answer
        return answer

    def devctl(self, state: object | None, command: int, data: Buffer) -> tuple[int, Buffer] | Later[tuple[int, Buffer]]:
        answer: tuple[int, Buffer] | Later[tuple[int, Buffer]] = self.answer
        return answer

    def poll(self, state: object | None) -> int:
        answer: int = self.answer
        return answer

    def close(self, state: object | None) -> None:
        self.calls.append(("close",))


class Rig:
    """A tree with one node `w`, and a client that has it open."""

    def __init__(self, node: Node | None = None, flags: int = os.O_RDWR) -> None:
        self.wrong = Wrong()
        self.kernel = Kernel(VirtualDispatch(1), "test")
        self.manager = TreeManager(self.kernel, Directory({b"w": node or self.wrong}), name="test")
        self.client = IoClient(self.kernel, Credentials(0, 0), target=self.manager.target)
        entry = self.client.open(b"w", flags)
        self.target, self.ocb = entry.target, entry.ocb

    def begin(self, message: bytes, reply_len: int = 10) -> Begun:
        return self.client.begin(self.target, message, reply_len)

    def read(self, size: int = 10) -> Begun:
        return self.begin(pack_read(self.ocb, 0, size, 0), size)

    def write(self, data: bytes) -> Begun:
        return self.begin(pack_write(self.ocb, 0, len(data), 0) + data)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("answer", ["text", 3, [b"x"], memoryview(b"12345678").cast("I")])
def test_a_read_that_returns_no_bytes(answer: object, later: bool) -> None:
    rig = Rig()
    rig.wrong.answer = Later() if later else answer
    begun = rig.read()
    if later:
        rig.wrong.answer.answer(answer)
    assert begun.status == -errno.EIO
    assert rig.manager.counters["failed"] == 1
    rig.wrong.answer = b"good"
    assert rig.read().data == b"good", "the manager goes on"


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("answer", ["3", b"3", -1, 4, 3.0])
def test_a_write_that_returns_no_count(answer: object, later: bool) -> None:
    rig = Rig()
    rig.wrong.answer = Later() if later else answer
    begun = rig.write(b"abc")
    if later:
        rig.wrong.answer.answer(answer)
    assert begun.status == -errno.EIO
    rig.wrong.answer = 3
    assert rig.write(b"abc").status == 3


@pytest.mark.parametrize("before", [False, True])
def test_an_answer_that_comes_later_and_is_none(before: bool) -> None:
    rig = Rig()
    later: Later[Any] = Later()
    rig.wrong.answer = later
    if before:
        later.answer(None)
    begun = rig.write(b"abc")
    later.answer(None)
    assert begun.status == -errno.EIO


def test_a_read_that_returns_more_than_was_asked_for() -> None:
    rig = Rig()
    rig.wrong.answer = bytes(range(100))
    begun = rig.read(10)
    assert (begun.status, begun.data) == (10, bytes(range(10)))
    entry = rig.client.open(b"w", prefetch=20)
    assert entry.data == bytes(range(20))


def test_an_open_whose_first_bytes_are_wrong_leaves_nothing_open() -> None:
    rig = Rig()
    rig.wrong.answer = "text"
    with fails(errno.EIO):
        rig.client.open(b"w", prefetch=20)
    assert rig.wrong.calls == [("close",)]
    gave_up: list[bool] = []
    rig.wrong.answer = Later(lambda: gave_up.append(True))
    assert rig.client.open(b"w", prefetch=20).data == b""
    assert gave_up == [True]


def test_other_answers_of_a_wrong_type() -> None:
    rig = Rig()
    for answer in ("text", (0, "text"), ("0", b""), (-1, b""), 7, None):
        rig.wrong.answer = answer
        assert rig.begin(pack_devctl(rig.ocb, 1, b"")).status == -errno.EIO
    rig.wrong.answer = "ready"
    for action in (0, 1):
        assert rig.begin(pack_notify(rig.ocb, action, 1)).status == -errno.EIO


def test_a_message_is_still_to_be_answered_when_its_reply_is_refused() -> None:
    kernel = Kernel(VirtualDispatch(1), "test")

    def handler(message: Any) -> None:
        for status, parts in ((-1, ()), ("0", ()), (0, ("text",)), (0, (b"", 5))):
            with pytest.raises((Misuse, TypeError)):  # the latter from compiled code
                message.reply(status, *parts)
            assert not message.answered
        message.error(100_000)

    channel = kernel.channel(handler)
    client = IoClient(kernel, Credentials(0, 0))
    with fails(errno.EIO):
        client.send(Target(0, kernel.pid, channel.chid), (b"",))


class Queue(Node):
    """What is put into it can be read once."""

    mode = stat.S_IFCHR | 0o666

    def __init__(self) -> None:
        self.items: list[bytes] = []

    def read(self, state: object | None, offset: int, size: int) -> Buffer | None:
        return self.items.pop(0) if self.items else None

    def put(self, item: bytes) -> None:
        self.items.append(item)
        self.notify()


def test_a_node_is_served_again() -> None:
    node = Queue()
    first = Rig(node)
    waiting = first.read()
    first.manager.destroy()
    assert waiting.status is not None
    second, third = Rig(node), Rig(node)
    for number in range(PARKED_PER_CLIENT + 10):
        rig = (second, third)[number % 2]
        begun = rig.read()
        assert begun.status is None
        node.put(b"x")
        assert begun.data == b"x"
    for rig in (first, second, third):
        assert not rig.manager.opened._parking._of_client


class Pulled:
    """A client whose message is pulled; `pulls` are what waits for its bytes."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.pulls: list[ReadDone] = []

    def answer(self, status: int, parts: Sequence[Buffer], descriptors: Descriptors) -> None:
        self.status = status

    def pull(self, offset: int, length: int, done: ReadDone) -> None:
        self.pulls.append(done)

    def push(self, offset: int, data: Buffer) -> None:
        raise AssertionError("nothing is pushed")


def test_a_write_that_is_still_pulled_when_its_handle_is_closed() -> None:
    rig = Rig()
    client = Pulled()
    connection = rig.client.connection(rig.target)
    head = pack_write(rig.ocb, 0, 1000, 0)
    rig.kernel.deliver(rig.manager.channel, connection.info, head, len(head) + 1000, 0, 10, client)
    rig.client.close(rig.target, rig.ocb)
    client.pulls[0](1000, bytes(1000))
    assert client.status == -errno.EBADF
    assert rig.wrong.calls == [("close",)]


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFCHR, stat.S_IFIFO])
def test_a_long_write(kind: int) -> None:
    rig = Rig()
    rig.wrong.mode = kind | 0o666
    rig.wrong.answer = VALUE_WRITE_MAX
    begun = rig.write(bytes(VALUE_WRITE_MAX + 1))
    if kind == stat.S_IFREG:
        assert (begun.status, rig.wrong.calls) == (-errno.EMSGSIZE, [])
    else:
        assert (begun.status, rig.wrong.calls) == (VALUE_WRITE_MAX, [("write", 0, VALUE_WRITE_MAX)])


def test_what_is_written_needs_a_handle_for_it_and_goes_where_the_open_said() -> None:
    reading, appending = Rig(flags=os.O_RDONLY), Rig(flags=os.O_WRONLY | os.O_APPEND)
    assert reading.write(b"abc").status == -errno.EBADF
    assert reading.wrong.calls == []
    appending.wrong.answer = 3
    assert appending.write(b"abc").status == 3
    assert appending.wrong.calls == [("write", OFFSET_APPEND, 3)]


class Shelf(Directory):
    """A directory in which names are made and removed."""

    uid = 5
    mode = stat.S_IFDIR | 0o755

    def create(self, name: bytes, user: MappedUser, mode: int) -> Node:
        node = self.nodes[name] = Value(lambda: b"", mode)
        return node

    def remove(self, name: bytes, user: MappedUser) -> None:
        del self.nodes[name]


def test_names_are_made_and_removed_by_whom_the_directory_lets() -> None:
    shelf = Shelf({b"there": Value(lambda: b"text")})
    kernel = Kernel(VirtualDispatch(1), "test")
    manager = TreeManager(kernel, Directory({b"shelf": shelf}), name="test")
    owner, other = (IoClient(kernel, Credentials(uid, uid), target=manager.target) for uid in (5, 6))
    with fails(errno.EACCES):
        other.open(b"shelf/new", os.O_CREAT | os.O_RDONLY, 0o644)
    with fails(errno.EACCES):
        other.name(Connect.UNLINK, b"shelf/there")
    assert set(shelf.nodes) == {b"there"}
    owner.open(b"shelf/new", os.O_CREAT | os.O_RDONLY, 0o644)
    owner.name(Connect.UNLINK, b"shelf/there")
    assert set(shelf.nodes) == {b"new"}
    shelf.mode = stat.S_IFDIR | 0o644
    with fails(errno.EACCES):
        owner.open(b"shelf/more", os.O_CREAT | os.O_RDONLY, 0o644)


def test_a_handle_that_is_not_lent_stays_its_opener_s() -> None:
    rig = Rig(Value(lambda: b"text", 0o666), os.O_RDONLY)
    twin = IoClient(rig.kernel, Credentials(0, 0), target=rig.manager.target)
    assert twin.read(rig.target, rig.ocb, 0, 10) == b"text", "equal credentials of the same node"
    twin.close_all()
    assert rig.client.read(rig.target, rig.ocb, 0, 10) == b"text", "it did not die with the other"
    rig.client.close_all()
    assert not rig.manager.manager.table.handles
