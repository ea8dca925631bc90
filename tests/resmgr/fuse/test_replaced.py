"""A name that leads to another file when the kernel opens it than when it looked it up, and to a third when it looks again."""

from __future__ import annotations

import errno
import os
from stat import S_IFDIR, S_IFLNK

import pytest

from resmgr.fuse.formats import Opcode
from resmgr.fuse.replaced import KEPT_MAX, VALID, WALK_MAX
from resmgr.testing.fuserig import PID, Rig
from resmgr.testing.memfs import MemHandle


@pytest.fixture
def rig() -> Rig:
    return Rig()


def replace(rig: Rig, data: bytes) -> None:
    rig.fs.remove(b"f")
    rig.fs.add(b"f", data)


def is_open(rig: Rig) -> bool:
    """Whether any file is open at the server."""
    return any(isinstance(handle, MemHandle) and handle.flags is not None for handle in rig.fs.manager.table.handles.values())


def closed(rig: Rig) -> bool:
    """Nothing is open at the server soon."""
    rig.run(VALID + 0.1)
    return not is_open(rig)


def test_what_was_opened_is_what_the_kernel_gets_when_it_comes_back(rig: Rig) -> None:
    rig.fs.add(b"f", b"first")
    node = rig.walk(b"f")
    replace(rig, b"the second")

    assert rig.open(node).error == -errno.ESTALE
    replace(rig, b"and a third one")
    rig.messages()
    # Twice: it asks whether the old entry is right before it looks anew.
    for _ in range(2):
        answer = rig.lookup(1, b"f")
        assert answer.nodeid != node
        assert answer.entry[1] == len(b"the second")
    opened = rig.open(answer.nodeid)
    assert opened.error == 0
    assert rig.messages() == {}
    assert rig.read(answer.nodeid, opened.fh, 0, 20).body == b"the second"
    # Whoever comes later gets what is there then.
    later = rig.walk(b"f")
    assert rig.read(later, rig.open(later).fh, 0, 20).body == b"and a third one"


def test_who_has_the_old_one_open_keeps_it(rig: Rig) -> None:
    rig.fs.add(b"f", b"old")
    node = rig.walk(b"f")
    old = rig.open(node)
    replace(rig, b"new one")

    assert rig.open(node).error == -errno.ESTALE
    again = rig.walk(b"f")
    assert rig.read(again, rig.open(again).fh, 0, 10).body == b"new one"
    assert rig.read(node, old.fh, 0, 10).body == b"old"


def test_somebody_else_has_looked_meanwhile(rig: Rig) -> None:
    """The node that the kernel opens has lost its name to a newer one."""
    rig.fs.add(b"f", b"first")
    node = rig.walk(b"f")
    replace(rig, b"second")
    newer = rig.walk(b"f")
    assert newer != node
    replace(rig, b"third")

    assert rig.open(node).error == -errno.ESTALE
    again = rig.walk(b"f")
    assert rig.read(again, rig.open(again).fh, 0, 10).body == b"third"
    # To truncate what has the name now, which may not be what is meant, nobody is asked.
    rig.messages()
    assert rig.open(node, os.O_WRONLY | os.O_TRUNC).error == -errno.ESTALE
    assert rig.messages() == {}


def test_what_is_opened_without_a_look_at_its_name_is_that_file_or_nothing(rig: Rig) -> None:
    """Through /proc/PID/fd of a descriptor that was opened by O_PATH: the kernel tries the same inode twice."""
    rig.fs.add(b"f", b"meant")
    node = rig.walk(b"f")
    replace(rig, b"another")

    for _ in range(4):
        assert rig.open(node).error == -errno.ESTALE
    rig.messages()
    rig.walk(b"f")
    assert rig.messages() == {"lookup": 1}
    assert closed(rig)


def test_what_nobody_comes_for_is_closed(rig: Rig) -> None:
    rig.fs.add(b"f", b"first")
    for number in range(KEPT_MAX + 2):
        rig.pid = PID + number
        node = rig.walk(b"f")
        replace(rig, b"%d" % number)
        assert rig.open(node).error == -errno.ESTALE
    assert closed(rig)
    # After that time the server is asked.
    rig.messages()
    rig.walk(b"f")
    assert rig.messages() == {"lookup": 1}


def found_instead(rig: Rig) -> int:
    """The kernel has opened one/two/f, which was replaced, and tries it again. The node of the directory."""
    rig.fs.add(b"one/two/f", b"first")
    rig.fs.add(b"one/other", b"")
    node = rig.walk(b"one/two/f")
    rig.fs.remove(b"one/two/f")
    rig.fs.add(b"one/two/f", b"second")
    assert rig.open(node).error == -errno.ESTALE
    return rig.walk(b"one/two")


def test_a_way_takes_as_long_as_it_takes(rig: Rig) -> None:
    """Each name on it is asked for again, on a machine on which each of them waits for a processor, or of a server that is far away."""
    directory = found_instead(rig)
    node = 1
    for name in b"one", b"two", b"f", b"f":
        rig.run(0.9 * VALID)
        node = rig.lookup(directory if name == b"f" else node, name).nodeid
    rig.run(0.9 * VALID)
    rig.messages()
    opened = rig.open(node)
    assert (opened.error, rig.messages()) == (0, {})
    assert rig.read(node, opened.fh, 0, 10).body == b"second"


def test_who_goes_another_way_does_not_come_back(rig: Rig) -> None:
    directory = found_instead(rig)
    rig.run(0.6 * VALID)
    assert is_open(rig)
    rig.lookup(rig.walk(b"one"), b"other")
    rig.lookup(directory, b"none")
    rig.run(0.9 * VALID)
    assert is_open(rig), "the directory above is on the way"
    rig.lookup(directory, b"none")
    rig.run(0.6 * VALID)
    assert not is_open(rig)


def test_nobody_is_under_way_for_ever(rig: Rig) -> None:
    found_instead(rig)
    for _ in range(19):
        rig.run(WALK_MAX / 20)
        rig.walk(b"one/two")
        assert is_open(rig)
    rig.run(WALK_MAX / 20)
    rig.walk(b"one/two")
    rig.run(VALID)
    assert not is_open(rig)


def test_other_flags_and_another_thread_are_another_open(rig: Rig) -> None:
    rig.fs.add(b"f", b"first")
    node = rig.walk(b"f")
    replace(rig, b"second")
    assert rig.open(node).error == -errno.ESTALE
    rig.pid += 1
    other = rig.walk(b"f")
    rig.messages()
    assert rig.open(other).error == 0
    rig.pid -= 1
    assert rig.open(other, os.O_RDWR).error == 0
    assert rig.messages()["open"] == 2


def test_a_stat_of_what_was_looked_up_a_moment_ago(rig: Rig) -> None:
    """The name was found to lead elsewhere between the LOOKUP and the GETATTR of one stat(2), and so in its second try."""
    rig.fs.add(b"f", b"first")
    nodes = []
    for text in (b"the second", b"and the third", b"last"):
        nodes.append(rig.walk(b"f"))
        replace(rig, text)
    rig.walk(b"f")

    def size(node: int) -> int:
        answer = rig.ask(Opcode.GETATTR, node, bytes(16))
        return answer.error or answer.attr[1]

    assert size(nodes[0]) == -errno.ESTALE
    assert size(nodes[1]) == len(b"the second")
    # One that is asked about twice was not looked up by its name: fstat of an O_PATH descriptor.
    assert [size(nodes[2]), size(nodes[2])] == [-errno.ESTALE] * 2
    rig.run(VALID)
    assert size(nodes[0]) == -errno.ESTALE


@pytest.mark.parametrize("kind", [S_IFLNK | 0o777, S_IFDIR | 0o755])
def test_what_is_open_is_opened_again_whatever_has_its_name(rig: Rig, kind: int) -> None:
    """By /proc/PID/fd, for writing."""
    rig.fs.add(b"f", b"old")
    node = rig.walk(b"f")
    old = rig.open(node, os.O_RDWR)
    rig.fs.remove(b"f")
    rig.fs.add(b"f", b"x", mode=kind)

    assert rig.open(node, os.O_RDWR).error == -errno.ESTALE
    again = rig.open(node, os.O_RDWR)
    assert again.error == 0
    assert rig.read(node, again.fh, 0, 10).body == b"old"
    assert rig.read(node, old.fh, 0, 10).body == b"old"


def test_who_came_by_a_descriptor_is_not_told_later_what_was_opened_then(rig: Rig) -> None:
    rig.fs.add(b"f", b"old")
    node = rig.walk(b"f")
    rig.open(node)
    replace(rig, b"new")
    assert rig.open(node).error == -errno.ESTALE
    assert rig.open(node).error == 0, "by what is open"

    rig.fs.remove(b"f")
    assert rig.lookup(1, b"f").nodeid == 0
