"""What the kernel may have to wait for is told when it need not: resmgr.fuse.telling."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.telling import JOBS_MAX, JOBS_OF_NODE
from resmgr.iomsg import Io
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault


def opened(name: bytes) -> tuple[Rig, int, int]:
    """A file that the kernel may have pages of, and whose server grants every lock."""
    rig = Rig()
    rig.fs.add(b"d/" + name, b"0123456789")
    rig.fs.manager._io[Io.LOCK] = lambda message, client, handle, flags: message.reply(0)
    node = rig.walk(b"d/" + name)
    return rig, node, rig.open(node, os.O_RDWR).fh


def read_slowly(rig: Rig, node: int, fh: int) -> int:
    rig.fs.faults.append(Fault("read", delay=0.3, times=1))
    return rig.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 10, 0, 0, 0))


def lock(rig: Rig, node: int, fh: int) -> int:
    return rig.start(Opcode.SETLKW, node, formats.LK_IN.pack(fh, 7, 0, 9, 1, 5, 0))


def test_pages_go_after_a_lock_when_no_read_that_came_before_has_them() -> None:
    """A thread that waits in the kernel for a READ whose server is silent could not be killed."""
    rig, node, fh = opened(b"f")
    first = read_slowly(rig, node, fh)
    locked = lock(rig, node, fh)
    rig.run(0.1)
    later = read_slowly(rig, node, fh)
    assert not {first, locked} & rig.answers.keys()
    assert [note.error for note in rig.notifications] == []
    rig.run(0.25)
    assert {first, locked} <= rig.answers.keys()
    assert later not in rig.answers
    assert [note.error for note in rig.notifications] == [formats.NOTIFY_INVAL_INODE]


def test_the_lock_is_told_when_the_kernel_has_dropped_them() -> None:
    rig, node, fh = opened(b"f")
    told = []
    rig.machine.tell_kernel = lambda messages, done: told.append((messages, done))
    locked = lock(rig, node, fh)
    assert locked not in rig.answers
    ((messages, done),) = told
    assert messages == [formats.inval_pages(node)]
    done()
    assert rig.answers[locked].error == 0


def test_no_more_threads_than_that_tell_it() -> None:
    rig = Rig()
    told = []
    rig.machine.tell_kernel = lambda messages, done: told.append(done)
    for number in range(JOBS_MAX + 2):
        rig.fs.add(b"d%d/f" % number)
        rig.walk(b"d%d" % number)
    done: list[int] = []
    for number, node in enumerate(list(rig.machine.nodes)[1:]):
        then = partial(done.append, number)
        rig.machine.telling.tell(node, [b"%d" % number], blocking=False, then=then)
    assert len(told) == JOBS_MAX
    told[3]()
    assert done == [3]
    assert len(told) == JOBS_MAX + 1


def test_a_node_that_has_some_of_them_wait_does_not_have_all() -> None:
    rig = Rig()
    told: list[tuple[bytes, Callable[[], None]]] = []
    rig.machine.tell_kernel = lambda messages, done: told.append((messages[0], done))
    for number in range(JOBS_OF_NODE + 3):
        rig.fs.add(b"d%d/f" % number)
        rig.walk(b"d%d" % number)
    *silent, other, later = list(rig.machine.nodes)[1:]
    other.server = rig.machine.servers.at((7, 1, 300), 0)
    for number, node in enumerate(silent):
        rig.machine.telling.tell(node, [b"%d" % number])
    assert [message for message, _ in told] == [b"%d" % number for number in range(JOBS_OF_NODE)]
    rig.machine.telling.tell(other, [b"other"])
    rig.machine.telling.tell(later, [b"attributes"], blocking=False)
    assert [message for message, _ in told[JOBS_OF_NODE:]] == [b"other", b"attributes"]
    told[0][1]()
    assert told[-1][0] == b"%d" % JOBS_OF_NODE
