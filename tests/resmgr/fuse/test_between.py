"""COPY_FILE_RANGE between files of two other nodes: the kernel's part is played, nodes and files are real, time is virtual."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.channel import Message
from resmgr.copymsg import LENGTH_MAX, TAKE_MAX
from resmgr.fuse import formats
from resmgr.fuse.between import AGAIN_AFTER, SMALL
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.stuck import abort
from resmgr.iomsg import REQUEST, STATUS_REDIRECT, Attr, Entry, Io, Target
from resmgr.iorequest import parse_connect
from resmgr.testing.fuserig import PID, Answer, Rig
from tests.resmgr.hostfs.between import Four

SIZE = 2 * TAKE_MAX + 999
DATA = os.urandom(SIZE)
PART = SMALL + 1
ATTR = Attr(1, 0o040555, 2, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 1)


class Asking(Rig):
    """The kernel of node a, whose mount shows the nodes of *four* by their names."""

    def __init__(self, four: Four, options: FuseOptions | None = None) -> None:
        self.four = four
        self.world = four.world
        self.kernel = four.kernels["a"]
        self.dispatch = self.kernel.dispatch  # type: ignore[assignment]  # a view of the world
        channel = self.kernel.channel(self._names)
        self._here = Target(0, channel.pid, channel.chid)
        self.machine = Machine(self.dispatch, KernelResolver(self.kernel), self._here, options, b"/net")
        self.machine.name_of_node = self.kernel.name_of_node
        self.answers: dict[int, Answer] = {}
        self.notifications = []
        self.uid = 0
        self.pid = PID
        self._uniques = itertools.count(2, 2)
        self.machine.on_output = self._collect

    def _names(self, message: Message) -> None:
        if REQUEST.unpack_from(message.data)[0] != Io.CONNECT:
            message.reply(0, ATTR.pack())
            return
        path = parse_connect(message.data).path.decode()
        name, _, rest = path.partition("/")
        if not path:
            message.reply(0, Entry(self._here, 7, 0, ATTR).pack())
        elif name not in self.four.nets["a"].peers:
            message.error(errno.EHOSTDOWN)
        else:
            message.reply(STATUS_REDIRECT, Entry(Four.files(name), 0, 0, None, rest=rest.encode()).pack())

    def ask(self, opcode: int, node: int, body: bytes = b"", seconds: float = 60.0) -> Answer:
        unique = self.start(opcode, node, body)
        self.world.run_until(lambda: unique in self.answers, limit=self.world.time + seconds)
        return self.answers[unique]

    def opened(self, path: bytes, flags: int = os.O_RDONLY) -> tuple[int, int]:
        node = self.walk(path)
        return node, self.open(node, flags).fh

    @staticmethod
    def body(source: tuple[int, int], there: tuple[int, int], start: int, to: int, length: int) -> bytes:
        return formats.COPY_IN.pack(source[1], start, there[0], there[1], to, length, 0)

    def copy(self, source: tuple[int, int], there: tuple[int, int], start: int, to: int, length: int) -> int:
        """The count, or a negative errno."""
        answer = self.ask(Opcode.COPY_FILE_RANGE, source[0], self.body(source, there, start, to, length))
        return answer.error or int.from_bytes(answer.body[:4], "little")


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Four]:
    nodes = Four(tmp_path)
    (nodes.roots["b"] / "x").write_bytes(DATA)
    for name in ("b", "c"):
        (nodes.roots[name] / "y").write_bytes(b"")
    yield nodes
    nodes.close()


@pytest.fixture
def rig(four: Four) -> Iterator[Asking]:
    asking = Asking(four)
    yield asking
    asking.machine.close()


def test_the_far_nodes_copy_between_themselves(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_RDWR)
    assert rig.copy(x, y, 10, 20, LENGTH_MAX * 2) == SIZE - 10
    assert (four.roots["c"] / "y").read_bytes() == bytes(20) + DATA[10:]
    assert rig.machine.drops["copies_between"] == 1
    assert four.fs["c"].counters["fetches"] == 1
    # What the kernel and the front end believed of it is of before.
    node = rig.machine.nodes.get(y[0])
    assert node is not None
    assert node.told is None
    assert rig.read(*y, 20, 100).body == DATA[10:110]


def test_files_of_one_node_are_copied_there_and_files_of_this_one_by_the_kernel(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"b/y", os.O_WRONLY)
    assert rig.copy(x, y, 0, 0, PART) == PART
    assert four.fs["b"].counters["offers"] == 0
    rig.uid = 7
    (four.roots["b"] / "y").chmod(0o666)
    other = rig.opened(b"b/y", os.O_WRONLY)
    assert rig.copy(x, other, 0, 0, PART) == -errno.EXDEV, "two users of one node"
    assert four.fs["b"].counters["offers"] == 0


def test_what_is_small_is_left_to_the_kernel_which_has_it(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    assert rig.copy(x, y, 0, 0, SMALL) == -errno.EXDEV
    assert rig.copy(x, y, SIZE - SMALL, 0, LENGTH_MAX) == -errno.EXDEV, "as much as there is"
    assert four.fs["b"].counters["offers"] == 0
    assert rig.copy(x, y, SIZE - SMALL - 1, 0, LENGTH_MAX) == SMALL + 1


def test_a_mount_that_knows_no_names_of_nodes_leaves_it_to_the_kernel(rig: Asking, four: Four) -> None:
    rig.machine.name_of_node = lambda nd: ""
    assert rig.copy(rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY), 0, 0, PART) == -errno.EXDEV
    assert four.fs["b"].counters["offers"] == 0


def test_a_pair_that_cannot_is_asked_again_after_a_while(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    four.cut("b", "c")
    assert rig.copy(x, y, 0, 0, PART) == -errno.EXDEV
    assert rig.copy(x, y, 0, 0, PART) == -errno.EXDEV
    assert four.fs["b"].counters["offers"] == 1
    assert rig.machine.drops["copies_refused"] == 1
    four.join("b", "c")
    rig.run(AGAIN_AFTER)
    assert rig.copy(x, y, 0, 0, PART) == PART


@pytest.mark.parametrize("which", ["b", "c"])
def test_a_node_that_does_not_know_how_is_asked_once(rig: Asking, four: Four, which: str) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    del four.fs[which].manager._io[int(Io.OFFER if which == "b" else Io.FETCH)]
    for _ in range(3):
        assert rig.copy(x, y, 0, 0, PART) == -errno.EXDEV
        rig.run(AGAIN_AFTER)
    assert four.fs[which].manager.counters["unsupported"] == 1


def test_writes_on_the_way_to_either_file_arrive_first(rig: Asking, four: Four) -> None:
    source = rig.opened(b"b/x", os.O_RDWR)
    y = rig.opened(b"c/y", os.O_WRONLY)
    new = b"n" * PART
    for one, data in ((source, new), (y, b"old")):
        rig.start(Opcode.WRITE, one[0], formats.WRITE_IN.pack(one[1], 0, len(data), 0, 0, 0) + data)
    assert rig.copy(source, y, 0, 0, PART) == PART
    assert (four.roots["c"] / "y").read_bytes() == new


def test_a_ticket_of_another_length_is_no_ticket(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    four.fs["b"].manager._io[int(Io.OFFER)] = lambda message, client, handle, flags: message.reply(0, bytes(31))
    assert rig.copy(x, y, 0, 0, PART) == -errno.EIO


def test_more_than_was_asked_for_is_not_believed(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    four.fs["c"].manager._io[int(Io.FETCH)] = lambda message, client, handle, flags: message.reply(PART + 1)
    assert rig.copy(x, y, 0, 0, PART) == -errno.EIO


def test_the_end_of_a_node_is_told(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    four.fs["c"].manager._io[int(Io.FETCH)] = lambda message, client, handle, flags: four.cut("a", "c")
    assert rig.copy(x, y, 0, 0, PART) == -errno.EHOSTDOWN


def test_a_signal_before_the_ticket_came_copies_nothing(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    kept: list[Message] = []

    def keep(message: Message, client: object, handle: object, flags: int) -> None:
        kept.append(message)
        message.on_unblock = lambda: message.error(errno.EINTR)

    four.fs["b"].manager._io[int(Io.OFFER)] = keep
    unique = rig.start(Opcode.COPY_FILE_RANGE, x[0], rig.body(x, y, 0, 0, PART))
    rig.run(0.1)
    rig.start(Opcode.INTERRUPT, 0, formats.INTERRUPT_IN.pack(unique))
    rig.run(1.0)
    assert rig.answers[unique].error == -errno.EINTR
    assert four.fs["c"].counters["fetches"] == 0


def test_who_waits_and_on_whom_is_shown_and_ended(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    kept: list[Message] = []

    def keep(message: Message, client: object, handle: object, flags: int) -> None:
        kept.append(message)
        message.on_unblock = lambda: message.reply(7)

    four.fs["c"].manager._io[int(Io.FETCH)] = keep
    unique = rig.start(Opcode.COPY_FILE_RANGE, x[0], rig.body(x, y, 0, 0, PART))
    rig.run(0.1)
    (waiting,) = rig.machine.status()
    assert (waiting.operation, waiting.path, waiting.server) == ("COPY_FILE_RANGE", "/b/x", (3, 1, 300))
    assert abort(rig.machine, unique, errno.EHOSTDOWN)
    rig.run(0.1)
    assert rig.answers[unique].error == -errno.EHOSTDOWN
    assert kept[0].answered
    node = rig.machine.nodes.get(y[0])
    assert node is not None
    assert node.told is None, "what became of it is not known"


@pytest.mark.parametrize("which", ["b", "c"])
def test_a_hard_mount_copies_on_when_the_node_is_back(four: Four, which: str) -> None:
    rig = Asking(four, FuseOptions(failure=Failure.HARD))
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    rig.run(1.0)
    four.cut("a", which)
    unique = rig.start(Opcode.COPY_FILE_RANGE, x[0], rig.body(x, y, 0, 0, SIZE))
    rig.run(5.0)
    assert unique not in rig.answers
    four.join("a", which)
    rig.world.run_until(lambda: unique in rig.answers, limit=rig.world.time + 30.0)
    assert rig.answers[unique].error == 0
    assert (four.roots["c"] / "y").read_bytes() == DATA
    rig.machine.close()


def test_a_write_does_not_overtake_a_copy_that_was_given_up(rig: Asking, four: Four) -> None:
    x, y = rig.opened(b"b/x"), rig.opened(b"c/y", os.O_WRONLY)
    kept: list[Message] = []

    def keep(message: Message, client: object, handle: object, flags: int) -> None:
        kept.append(message)
        message.on_unblock = lambda: None

    four.fs["c"].manager._io[int(Io.FETCH)] = keep
    unique = rig.start(Opcode.COPY_FILE_RANGE, x[0], rig.body(x, y, 0, 0, PART))
    rig.run(0.1)
    assert abort(rig.machine, unique, errno.EINTR)
    wrote = rig.start(Opcode.WRITE, y[0], formats.WRITE_IN.pack(y[1], 0, 1, 0, 0, 0) + b"x")
    rig.run(0.1)
    assert wrote not in rig.answers
    kept[0].reply(7)
    rig.run(0.1)
    assert rig.answers[wrote].error == 0
