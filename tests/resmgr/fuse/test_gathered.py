"""Small writes that go in one message while others are on the way: what they become, who has them sent, who is told of errors."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from resmgr.fuse import behind as accounts
from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import Failure, FuseOptions
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault
from tests.resmgr.fuse.far import AWAY, Far
from tests.resmgr.fuse.written import FLUSH, FSYNC, events, later, opened, slow, write_in, wrote


def test_small_writes_that_continue_each_other_go_in_one_message(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1)
    data = [bytes([number]) * 100 for number in range(50)]

    for number, piece in enumerate(data):
        assert rig.write(node, fh, 100 * number, piece).error == 0
    assert events(rig)["writes_gathered"] == 48, "the first is on the way, the second is what the others continue"
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(0.15)

    assert rig.answers[flush].error == 0, "close sends what is not sent yet, it does not wait for the first"
    assert rig.fs.find(b"f").data == b"".join(data)
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


def test_what_is_not_sent_yet_goes_when_something_arrives_or_does_not_continue_it(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    rig.write(node, fh, 0, b"a")
    rig.write(node, fh, 1, b"b")
    rig.write(node, fh, 2, b"c")
    rig.run(0.05)
    assert rig.fs.find(b"f").data == b""
    rig.run(0.06)
    assert rig.fs.find(b"f").data == b"abc", "nobody asked for it"

    slow(rig, 0.1, times=1)
    rig.write(node, fh, 10, b"d")
    rig.write(node, fh, 20, b"e")
    rig.write(node, fh, 30, b"f")
    rig.run(0.01)
    assert rig.fs.find(b"f").data[20:] == b"e", "the one at 30 does not continue it"
    rig.run(0.2)
    assert rig.fs.find(b"f").data == b"abc" + bytes(7) + b"d" + bytes(9) + b"e" + bytes(9) + b"f"


def test_an_error_of_gathered_writes_is_told_once_and_a_short_one_goes_on(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    rig.write(node, fh, 0, b"a")
    rig.write(node, fh, 1, b"b")
    rig.write(node, fh, 2, b"c")
    rig.fs.faults.append(Fault("write", code=errno.ENOSPC))
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(0.3)
    assert rig.answers[flush].error == -errno.ENOSPC
    rig.fs.faults.clear()
    assert rig.ask(Opcode.FSYNC, node, FSYNC(fh, 0)).error == -errno.ENOSPC
    assert rig.ask(Opcode.FLUSH, node, FLUSH(fh, 0)).error == 0
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0


def test_writes_through_another_open_file_or_overlapping_ones_keep_their_order(rig: Rig) -> None:
    node, fh = opened(rig)
    other = rig.open(node, os.O_RDWR).fh
    slow(rig, 0.05)
    rig.write(node, fh, 0, b"aaaa")
    rig.write(node, fh, 4, b"bbbb")
    rig.write(node, other, 8, b"cccc")
    assert "writes_gathered" not in events(rig)
    wrote(rig, node, fh, 6, b"dddd")
    flush = later(rig, Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(0.5)
    assert rig.answers[flush].error == 0
    assert rig.fs.find(b"f").data == b"aaaabbddddcc"


def test_what_continues_the_one_that_is_not_sent_does_not_overtake_others(rig: Rig) -> None:
    """The kernel sends the part in front of a page's boundary by itself, at times."""
    node, fh = opened(rig)
    slow(rig, 0.1, times=1)
    assert rig.write(node, fh, 4, b"a" * 100).error == 0
    slow(rig, 0.01)
    assert rig.write(node, fh, 0, b"bbbb").error == 0
    last = later(rig, Opcode.WRITE, node, write_in(fh, 4, b"cccc"))
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(0.3)
    assert (rig.answers[last].error, rig.answers[flush].error) == (0, 0)
    assert rig.fs.find(b"f").data == b"bbbbcccc" + b"a" * 96


def test_gathered_bytes_are_bounded(rig: Rig) -> None:
    node, fh = opened(rig)
    slow(rig, 1)
    size = 60_000
    for number in range(20):
        assert rig.write(node, fh, number * size, bytes([number]) * size).error == 0
    behind = next(one.behind for one in rig.machine.nodes if one.behind is not None)
    assert behind.gathered is not None
    assert behind.gathered.size <= accounts.GATHERED_MAX
    rig.run(5)
    assert rig.fs.find(b"f").data == b"".join(bytes([number]) * size for number in range(20))


def test_what_was_not_sent_goes_to_what_the_file_was_opened_again_as(tmp_path: Path) -> None:
    """Its server has another one open under the old number."""
    others = [b"g%d" % number for number in range(5)]
    for name in (b"f", *others):
        (tmp_path / os.fsdecode(name)).write_bytes(b"........")
    far = Far(tmp_path, FuseOptions(failure=Failure.HARD))
    nodes = [far.ask(Opcode.LOOKUP, 1, name + b"\0").nodeid for name in (b"f", *others)]
    fhs = [far.ask(Opcode.OPEN, node, formats.OPEN_IN.pack(os.O_RDWR, 0)).fh for node in nodes]
    far.run(0.1)
    for offset, data in (0, b"aaaa"), (4, b"bbbb"):
        assert far.write(nodes[0], fhs[0], offset, data).error == 0
    behind = next(one.behind for one in far.machine.nodes if one.behind is not None)
    assert behind.gathered is not None, "the second one is not sent"
    far.fail("restart")
    far.run(AWAY - 0.01)
    asked = [far.start(Opcode.READ, node, formats.READ_IN.pack(fh, 0, 8, 0, 0, 0)) for node, fh in zip(nodes[1:], fhs[1:], strict=True)]
    far.run(5)
    assert [far.answers[unique].body for unique in asked] == [b"........"] * len(others)
    assert (tmp_path / "f").read_bytes() == b"aaaabbbb"
    assert {(tmp_path / os.fsdecode(name)).read_bytes() for name in others} == {b"........"}
    far.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_file_written_in_any_way_is_what_a_local_one_would_be(seed: int) -> None:
    rig = Rig()
    draw = random.Random(seed)
    node, fh = opened(rig)
    handles = [fh, rig.open(node, os.O_RDWR).fh]
    fault = slow(rig, 0.01)
    wanted = bytearray()
    at = 0
    for _ in range(300):
        fault.delay = draw.choice((0.0, 0.005, 0.02))
        if draw.random() < 0.2:
            at = draw.choice((draw.randrange(len(wanted) + 20), max(0, at - draw.randrange(1, 80_000))))
        piece = draw.randbytes(draw.choice((1, 3, 100, 5000, 70_000)))
        through = draw.choice(handles[: draw.choice((1, 2))])
        # The kernel sends the part in front of a page's boundary by itself, at times.
        part = min(-at % 4096, len(piece))
        for start, end in ((0, part), (part, len(piece))):
            if start < end:
                wrote(rig, node, through, at + start, piece[start:end])
        wanted[len(wanted) :] = bytes(max(0, at - len(wanted)))
        wanted[at : at + len(piece)] = piece
        at += len(piece)
        if draw.random() < 0.1:
            rig.run(draw.random() * 0.02)
    flush = rig.start(Opcode.FLUSH, node, FLUSH(fh, 0))
    rig.run(10)
    assert rig.answers[flush].error == 0
    assert rig.fs.find(b"f").data == bytes(wanted), f"seed {seed}"
    assert rig.machine.held_bytes == rig.machine.behind_cost == 0
