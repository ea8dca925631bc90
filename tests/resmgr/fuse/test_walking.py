"""Directories opened ahead of a walk: what that saves, whom it answers, how old it may be, and that nothing stays open."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

import pytest

from resmgr.channel import Message
from resmgr.fuse import formats, walking
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.iomsg import Connect, Io
from resmgr.testing.fuserig import PID, Answer, Rig
from resmgr.testing.memfs import Fault

DELAY = 0.01


def events(rig: Rig) -> dict[str, int]:
    return rig.machine.statistics().events


def tree(count: int = 20, options: FuseOptions | None = None) -> Rig:
    """`t/d00`... with a file each; opening a directory takes `DELAY`."""
    rig = Rig(options)
    rig.fs.tells_end = rig.fs.shares_handles = True
    for number in reversed(range(count)):
        rig.fs.add(b"t/d%02d/f%02d" % (number, number), b"1" * (number + 1))
    rig.walk(b"t")
    rig.fs.faults = [Fault("open", delay=DELAY)]
    rig.run(0.001)
    rig.messages()
    return rig


def opened(rig: Rig, node: int) -> Answer:
    unique = rig.start(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0))
    for _ in range(1000):
        if unique in rig.answers:
            break
        rig.run(DELAY / 10)
    return rig.answers[unique]


def entries(rig: Rig, node: int) -> dict[bytes, tuple[int, int]]:
    """Open, list, close: nodeid and size by name."""
    answer = opened(rig, node)
    assert answer.error == 0
    found = {}
    body = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(answer.fh, 2, 65536, 0, 0, 0)).body
    at = 0
    while at < len(body):
        (nodeid,) = struct.unpack_from("=Q", body, at)
        size = formats.ENTRY_OUT.parse(body[at : at + formats.ENTRY_OUT.size])[7]
        at += 128
        _, _, length, _ = formats.DIRENT.parse(body, at)
        found[body[at + 24 : at + 24 + length]] = (nodeid, size)
        at += 24 + (length + 7 & ~7)
    rig.ask(Opcode.RELEASEDIR, node, formats.RELEASE_IN.pack(answer.fh, 0, 0, 0))
    return found


def top(rig: Rig) -> dict[bytes, int]:
    """List `t`; its directories in the listing's order."""
    return {name: nodeid for name, (nodeid, _) in entries(rig, rig.walk(b"t")).items()}


def steps(rig: Rig, below: dict[bytes, int], names: Iterable[bytes]) -> None:
    for name in names:
        number = int(name[1:])
        assert entries(rig, below[name])[b"f%02d" % number][1] == number + 1


@pytest.mark.parametrize("order", ["listing", "alphabet"])
def test_a_walk_waits_for_a_few_directories_only(order: str) -> None:
    rig = tree(100)
    below = top(rig)
    names = list(below) if order == "listing" else sorted(below)
    assert names != sorted(names, reverse=order == "alphabet")
    begin = rig.dispatch.now()
    steps(rig, below, names)

    assert rig.dispatch.now() - begin < 14 * DELAY
    assert events(rig)["walk_hits"] > 94
    assert rig.messages()["open"] < 101 + walking.WINDOW_MAX


def test_a_walk_goes_down_before_it_goes_on() -> None:
    rig = Rig()
    rig.fs.tells_end = rig.fs.shares_handles = True
    for a in range(4):
        for b in range(4):
            for c in range(4):
                rig.fs.add(b"t/%d/%d/%d/f" % (a, b, c))
    rig.walk(b"t")
    rig.fs.faults = [Fault("open", delay=DELAY)]
    begin = rig.dispatch.now()
    count = 0

    def down(node: int) -> None:
        nonlocal count
        count += 1
        for name, (below, _) in entries(rig, node).items():
            if name != b"f":
                down(below)

    down(rig.walk(b"t"))

    assert count == 1 + 4 + 16 + 64
    assert rig.dispatch.now() - begin < count * DELAY / 3
    assert events(rig).get("walk_unused", 0) < 12


def test_everything_opened_ahead_is_closed() -> None:
    rig = tree()
    below = top(rig)
    names = list(below)
    steps(rig, below, names[:5])
    rig.run(DELAY)
    assert len(rig.machine.walking) > 0
    assert len(rig.fs.manager.table.handles) > 6
    rig.run(3.0)

    assert len(rig.machine.walking) == 0
    # The directories that were listed keep theirs as base handles.
    assert len(rig.fs.manager.table.handles) == 1 + 5
    assert events(rig)["walk_unused"] > 0


def after_five(rig: Rig) -> tuple[dict[bytes, int], bytes]:
    """Five steps, and the name of the next directory, which is opened ahead."""
    below = top(rig)
    names = list(below)
    steps(rig, below, names[:5])
    rig.run(DELAY * 2)
    assert len(rig.machine.walking) >= 2
    return below, names[5]


def test_another_thread_is_not_told_what_was_asked_for_before_it_came() -> None:
    rig = tree()
    below, following = after_five(rig)
    rig.fs.add(b"t/" + following + b"/new")
    rig.pid = PID + 1
    assert b"new" in entries(rig, below[following])


def test_a_step_that_was_not_expected_ends_it() -> None:
    rig = tree()
    below, following = after_five(rig)
    rig.fs.add(b"t/" + following + b"/new")
    assert len(entries(rig, rig.walk(b"t"))) == 20
    assert b"new" in entries(rig, below[following])


def test_what_is_too_old_is_asked_for_again() -> None:
    rig = tree()
    below, following = after_five(rig)
    rig.fs.add(b"t/" + following + b"/new")
    rig.run(walking.VALID + DELAY)
    assert b"new" in entries(rig, below[following])


@pytest.mark.parametrize("change", ["make", "write", "remove"])
def test_what_is_changed_from_here_is_asked_for_again(change: str) -> None:
    rig = tree()
    below, following = after_five(rig)
    name = b"f" + following[1:]
    number = int(name[1:])
    if change == "make":
        assert rig.ask(Opcode.MKDIR, below[following], formats.MKDIR_IN.pack(0o755, 0) + b"new\0").error == 0
        assert b"new" in entries(rig, below[following])
    elif change == "remove":
        assert rig.ask(Opcode.UNLINK, below[following], name + b"\0").error == 0
        assert name not in entries(rig, below[following])
    else:
        node = rig.lookup(below[following], name).nodeid
        rig.fs.faults.clear()
        fh = rig.open(node, os.O_WRONLY).fh
        rig.write(node, fh, number + 1, b"more")
        rig.run(DELAY)
        assert entries(rig, below[following])[name][1] in (0, number + 5)


def test_a_directory_that_may_not_be_opened_is_refused_when_it_is() -> None:
    rig = tree()
    below = top(rig)
    names = list(below)
    rig.fs.faults.insert(0, Fault("open", names[6], code=errno.EACCES, delay=DELAY))
    steps(rig, below, names[:6])
    assert opened(rig, below[names[6]]).error == -errno.EACCES
    steps(rig, below, names[7:])


def test_a_directory_that_was_replaced_meanwhile_is_not_taken_for_the_other() -> None:
    rig = tree()
    below = top(rig)
    names = list(below)
    rig.fs.remove(b"t/" + names[5] + b"/f" + names[5][1:])
    rig.fs.remove(b"t/" + names[5])
    rig.fs.add(b"t/" + names[5] + b"/other")
    steps(rig, below, names[:5])
    rig.run(DELAY * 2)
    assert opened(rig, below[names[5]]).error == -errno.ESTALE


def test_the_program_that_waits_for_one_on_the_way_is_killed() -> None:
    rig = tree()
    below = top(rig)
    names = list(below)
    steps(rig, below, names[:3])
    rig.fs.faults = [Fault("open", delay=5.0)]
    unique = rig.start(Opcode.OPENDIR, below[names[15]], formats.OPEN_IN.pack(0, 0))
    rig.start(Opcode.INTERRUPT, 0, formats.INTERRUPT_IN.pack(unique))
    rig.run(2.0)
    assert rig.answers[unique].error == -errno.EINTR
    rig.run(20.0)
    assert len(rig.machine.walking) == 0


def test_it_can_be_switched_off_and_its_caps_hold() -> None:
    rig = tree(20, FuseOptions(attributes_ahead=0))
    below = top(rig)
    steps(rig, below, below)
    assert "walk_asked" not in events(rig)

    rig = tree(30)
    below = top(rig)
    names = list(below)
    for thread in range(walking.WALKS_MAX * 2):
        rig.pid = PID + 1 + thread
        entries(rig, rig.walk(b"t"))
        steps(rig, below, names[:8])
        assert len(rig.machine.walking) <= walking.EARLY_MAX
    rig.run(3.0)
    assert len(rig.machine.walking) == 0


def test_attributes_are_asked_for_ahead_for_who_asks_each_entry_for_them() -> None:
    """As ls -lR: a round trip for each directory otherwise, however many are open ahead."""
    rig = tree(100)
    asked: list[float] = []

    def which(message: Message, client: object, handle: object, flags: int) -> None:
        asked.append(rig.dispatch.now())
        rig.dispatch.call_at(rig.dispatch.now() + DELAY, lambda: message.reply(0, b""))

    rig.fs.manager._connect[int(Connect.XATTR)] = lambda message, client, request, base: message.error(errno.ENODATA)
    rig.fs.manager._io[int(Io.XATTR)] = which
    below = top(rig)
    began = rig.dispatch.now()
    for name in sorted(below):
        node = entries(rig, below[name])[b"f%02d" % int(name[1:])][0]
        for _ in range(3):
            unique = rig.start(Opcode.GETXATTR, node, formats.GETXATTR_IN.pack(0) + b"system.posix_acl_access\0")
            while unique not in rig.answers:
                rig.run(DELAY / 10)
            assert rig.answers[unique].error == -errno.ENODATA
    assert len(asked) == 100, "once each"
    assert rig.dispatch.now() - began < 50 * DELAY, "of 200 that they take one after the other"
