"""One daemon hands to the next what the kernel knows by number: programs go on with what they had open."""

from __future__ import annotations

import copy
import errno
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resmgr.channel import PID_SYSTEM, Connection, Credentials, Nd
from resmgr.fuse import formats, handover
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import Machine
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.fuse.servers import KernelResolver
from resmgr.fuse.state import BadState, State
from resmgr.iomsg import Target
from tests.resmgr.fuse.far import CHID, ND, Far

LOCK = formats.LK_IN.pack
Make = Callable[..., Far]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Make]:
    made: list[Far] = []
    (tmp_path / "root/d/sub").mkdir(parents=True)
    (tmp_path / "root/d/sub/f").write_bytes(b"0123456789")

    def make(failure: Failure = Failure.SOFT) -> Far:
        made.append(Far(tmp_path / "root", FuseOptions(failure=failure)))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def state(rig: Far) -> dict[str, Any]:
    told = handover.state_of(rig.machine, lambda nd: "there" if nd == ND else None).told()
    return json.loads(json.dumps(told))  # type: ignore[no-any-return]


def taken(rig: Far, told: object) -> None:
    """Another daemon takes over."""

    def gone(uid: int, gid: int) -> Connection:
        connection = rig.kernel.connect(Nd(ND), PID_SYSTEM, CHID, Credentials(uid, gid))
        connection.close()
        return connection

    rig.machine.close()
    rig.run(0.5)
    rig.machine = Machine(rig.dispatch, KernelResolver(rig.kernel), Target(ND, PID_SYSTEM, CHID), rig.machine.options, b"/net")
    rig.machine.on_output = rig._collect
    for file in handover.resume(rig.machine, State.parse(told), {"there": ND}.get, gone):
        rig.machine.reopening.reclaim(file)


def next_one(rig: Far) -> None:
    rig.machine.identify.ask_all()
    rig.run(0.1)
    assert not handover.restless(rig.machine)
    taken(rig, state(rig))


def walk(rig: Far, *names: bytes) -> int:
    node = 1
    for name in names:
        node = rig.ask(Opcode.LOOKUP, node, name + b"\0").nodeid
    return node


def opened(rig: Far, node: int, flags: int = os.O_RDWR) -> int:
    return rig.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(flags, 0)).fh


def read(rig: Far, node: int, fh: int) -> bytes:
    answer = rig.ask(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 100, 0, 0, 0))
    assert not answer.error
    return bytes(answer.body)


def write(rig: Far, node: int, fh: int, data: bytes) -> int:
    return rig.ask(Opcode.WRITE, node, formats.WRITE_IN.pack(fh, 0, len(data), 0, 0, 0) + data).error


def test_open_files_and_current_directories_go_on(far: Make) -> None:
    rig = far()
    sub = walk(rig, b"d", b"sub")
    file = walk(rig, b"d", b"sub", b"f")
    fh = opened(rig, file)
    assert write(rig, file, fh, b"abc") == 0
    next_one(rig)
    # The kernel gives back names that it was told by the one before.
    assert rig.ask(Opcode.LOOKUP, sub, b"f\0").nodeid == file
    assert read(rig, file, fh) == b"abc3456789"
    assert write(rig, file, fh, b"xyz") == 0
    assert rig.ask(Opcode.FLUSH, file, formats.FLUSH_IN.pack(fh, 7)).error == 0
    assert (rig.root / "d/sub/f").read_bytes() == b"xyz3456789"
    other = opened(rig, file)
    assert other > fh
    assert rig.ask(Opcode.MKDIR, sub, formats.MKDIR_IN.pack(0o755, 0) + b"new\0").nodeid > file
    for node, count in (file, 2), (sub, 1):
        rig.start(Opcode.FORGET, node, formats.FORGET_IN.pack(count))
    next_one(rig)
    assert read(rig, file, fh) == b"xyz3456789"


def test_what_was_removed_or_replaced_meanwhile_is_stale(far: Make) -> None:
    rig = far()
    (rig.root / "g").write_bytes(b"g")
    file, other = walk(rig, b"d", b"sub", b"f"), walk(rig, b"g")
    fh, other_fh = opened(rig, file), opened(rig, other)
    rig.machine.identify.ask_all()
    rig.run(0.1)
    told = state(rig)
    (rig.root / "d/sub/f").rename(rig.root / "elsewhere")
    (rig.root / "g").unlink()
    (rig.root / "g").write_bytes(b"another")
    taken(rig, told)
    assert read(rig, file, fh) == b"0123456789"
    assert rig.ask(Opcode.READ, other, formats.READ_IN.pack(other_fh, 0, 100, 0, 0, 0)).error == -errno.ESTALE


def test_a_listing_goes_on(far: Make) -> None:
    rig = far()
    names = {b"name%04d" % number for number in range(900)}
    for name in names:
        (rig.root / "d/sub" / os.fsdecode(name)).touch()
    sub = walk(rig, b"d", b"sub")
    fh = rig.ask(Opcode.OPENDIR, sub, bytes(8)).fh
    seen: list[bytes] = []
    offset = 0
    for turn in range(1000):
        if turn in (0, 2, 7):
            next_one(rig)
        body = rig.ask(Opcode.READDIR, sub, formats.READ_IN.pack(fh, offset, 4096, 0, 0, 0)).body
        if not body:
            break
        at = 0
        while at < len(body):
            _, offset, length, _ = struct.unpack_from("=QQII", body, at)
            seen.append(bytes(body[at + 24 : at + 24 + length]))
            at += 24 + (length + 7 & ~7)
    assert sorted(seen) == sorted({*names, b".", b"..", b"f"})
    assert rig.ask(Opcode.RELEASEDIR, sub, formats.RELEASE_IN.pack(fh, 0, 0, 0)).error == 0


def test_locks_are_taken_again_and_given_up_with_their_process(far: Make) -> None:
    rig = far()
    file = walk(rig, b"d", b"sub", b"f")
    fh = opened(rig, file)
    assert rig.ask(Opcode.SETLK, file, LOCK(fh, 7, 10, 19, 1, 5, 0)).error == 0
    next_one(rig)
    rig.run(0.5)
    other = opened(rig, file)
    assert rig.ask(Opcode.SETLK, file, LOCK(other, 8, 15, 15, 1, 6, 0)).error == -errno.EAGAIN
    assert rig.ask(Opcode.FLUSH, file, formats.FLUSH_IN.pack(fh, 7)).error == 0
    assert rig.ask(Opcode.SETLK, file, LOCK(other, 8, 15, 15, 1, 6, 0)).error == 0


def test_an_error_that_nobody_was_told_is_told_by_the_next(far: Make) -> None:
    rig = far()
    file = walk(rig, b"d", b"sub", b"f")
    fh = opened(rig, file)
    rig.run(0.3)
    rig.machine.files[fh].error = errno.ENOSPC
    next_one(rig)
    assert rig.ask(Opcode.FSYNC, file, formats.FSYNC_IN.pack(fh, 0)).error == -errno.ENOSPC
    assert rig.ask(Opcode.FSYNC, file, formats.FSYNC_IN.pack(fh, 0)).error == 0


@pytest.mark.parametrize("resends", [False, True])
def test_what_is_on_its_way_is_sent_again_or_told(far: Make, resends: bool) -> None:
    """The other node says nothing; the kernel can send again what waits, or cannot."""
    rig = far()
    rig.machine.resends = resends
    file = walk(rig, b"d", b"sub", b"f")
    fh = opened(rig, file)
    rig.run(0.3)
    rig.there.stop()
    once = rig.start(Opcode.UNLINK, 1, b"none\0")
    again, signalled = (rig.start(Opcode.LOOKUP, 1, b"none\0") for _ in range(2))
    rig.start(Opcode.INTERRUPT, 0, formats.INTERRUPT_IN.pack(signalled))
    behind = rig.start(Opcode.WRITE, file, formats.WRITE_IN.pack(fh, 0, 3, 0, 0, 0) + b"abc")
    rig.run(0.5)
    assert rig.answers[behind].error == 0
    assert handover.restless(rig.machine)
    handover.give_up(rig.machine)
    assert rig.answers[once].error == -errno.EHOSTDOWN
    assert (again in rig.answers) != resends
    assert rig.answers[signalled].error == -errno.EINTR
    assert state(rig)["files"][0][9] == errno.EIO


def test_what_is_no_state_is_refused(far: Make) -> None:
    rig = far()
    opened(rig, walk(rig, b"d", b"sub", b"f"))
    rig.ask(Opcode.OPENDIR, walk(rig, b"d", b"sub"), bytes(8))
    good = state(rig)
    bad: list[object] = [{}, [], None, {**good, "version": 2}, {**good, "nodes": good["nodes"][::-1]}, {**good, "files": good["files"] * 2}]
    bad += [{name: value for name, value in good.items() if name != left_out} for left_out in good if left_out != "tokens"]
    bad += [{**good, "tokens": tokens} for tokens in (None, [[1]], [[1, 2]], [["1", "token"]])]
    for place in ("nodes", "files", "directories", "servers"):
        for number in range(len(good[place][0])):
            broken = copy.deepcopy(good)
            broken[place][-1][number] = {"no": "value"}
            bad.append(broken)
        bad += [copy.deepcopy(good), copy.deepcopy(good)]
        del bad[-1][place][-1][-1]  # type: ignore[index]
        bad[-2][place][-1].append(0)  # type: ignore[index]
    for one in bad:
        with pytest.raises(BadState):
            taken(rig, one)
    taken(rig, good)
