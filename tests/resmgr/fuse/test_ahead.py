"""Attributes read ahead: what they save, how old they may be, whom they answer, and what a server may do to them."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator
from stat import S_IFDIR, S_IFREG

import pytest

from resmgr.fuse import ahead, changes, formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions
from resmgr.iomsg import Attr, DirEntry, pack_dirent
from resmgr.testing.fuserig import Answer, Rig
from resmgr.testing.memfs import Fault

VALID = 1.0


def events(rig: Rig) -> dict[str, int]:
    return rig.machine.statistics().events


def filled(count: int = 20, options: FuseOptions | None = None) -> tuple[Rig, int]:
    """A directory `d` of files of size 1, not looked at yet, and its nodeid."""
    rig = Rig(options)
    rig.fs.tells_end = True
    for number in range(count):
        rig.fs.add(b"d/f%d" % number, b"1")
    node = rig.walk(b"d")
    rig.run(0.001)
    rig.messages()
    return rig, node


def warmed(count: int = 20, options: FuseOptions | None = None) -> tuple[Rig, int]:
    """The same after two lookups, which brought the others; a moment later."""
    rig, node = filled(count, options)
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(0.01)
    assert rig.messages()["open"] == 1
    return rig, node


def size(rig: Rig, node: int, name: bytes) -> int:
    """What a lookup of *name* tells; -1: it does not exist."""
    answer = rig.lookup(node, name)
    assert answer.error == 0
    return answer.entry[1] if answer.nodeid else -1


def validity(answer: Answer) -> tuple[float, float]:
    """Of the entry and of its attributes, in seconds."""
    fields = formats.ENTRY_OUT.parse(answer.body)
    return fields[2] + fields[4] / 1e9, fields[3] + fields[5] / 1e9


# ---- what it saves


def test_lookups_in_one_directory_take_one_listing() -> None:
    rig, node = filled(100)

    assert [size(rig, node, b"f%d" % number) for number in range(100)] == [1] * 100

    assert rig.messages() == {"lookup": 2, "open": 1}
    assert events(rig)["ahead_hits"] == 98


def test_one_lookup_alone_reads_nothing_ahead() -> None:
    rig, node = filled()
    for _ in range(5):
        rig.lookup(node, b"f0")
        rig.run(VALID + 0.1)

    assert "open" not in rig.messages()


def test_a_large_directory_comes_in_growing_parts() -> None:
    rig, node = filled(2000)

    for number in range(2000):
        assert size(rig, node, b"f%d" % number) == 1

    messages = rig.messages()
    assert messages["open"] == 1
    assert messages["open"] + messages["readdir"] <= 8
    assert messages["lookup"] <= 20


def test_what_was_of_use_is_asked_for_again_at_once_when_it_is_too_old() -> None:
    rig, node = warmed(100)
    for number in range(100):
        rig.lookup(node, b"f%d" % number)
    rig.run(VALID + 0.1)
    rig.messages()

    for number in range(100):
        rig.lookup(node, b"f%d" % number)

    assert rig.messages() == {"lookup": 1, "open": 1}


def test_random_lookups_in_a_huge_directory_ask_for_little() -> None:
    """The price of guessing wrong is bounded by what the lookups cost anyway."""
    rig, node = filled(20_000)
    chosen = random.Random(1)
    for _ in range(400):
        rig.lookup(node, b"f%d" % chosen.randrange(20_000))
        rig.run(0.02)

    messages = rig.messages()
    assert messages["lookup"] > 380
    assert messages.get("open", 0) + messages.get("readdir", 0) < 10


def test_directories_are_found_and_entered() -> None:
    rig = Rig()
    for number in range(10):
        rig.fs.add(b"d/s%d/f" % number, b"12")
    node = rig.walk(b"d")
    rig.run(0.001)
    below = [rig.lookup(node, b"s%d" % number) for number in range(10)]

    assert {answer.entry[9] for answer in below} == {S_IFDIR | 0o755}
    assert [size(rig, answer.nodeid, b"f") for answer in below] == [2] * 10


def test_the_open_directory_is_closed_again() -> None:
    for count in (20, 1000):
        rig, _ = warmed(count)
        before = len(rig.fs.manager.table.handles)
        rig.run(3 * VALID)
        assert len(rig.fs.manager.table.handles) == before - 1 or count == 20
        assert rig.messages().get("close", 0) <= 2


def test_it_can_be_switched_off() -> None:
    for options in (FuseOptions(attributes_ahead=0), FuseOptions(attr_valid=0.0), FuseOptions(entry_valid=0.0)):
        rig, node = filled(20, options)
        for number in range(20):
            rig.lookup(node, b"f%d" % number)
        assert rig.messages() == {"lookup": 20}


def test_names_that_were_listed_without_plus_are_known_then() -> None:
    rig, node = filled(50)
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, 0, 32768, 0, 0, 0))
    rig.messages()

    assert [size(rig, node, b"f%d" % number) for number in range(50)] == [1] * 50

    assert rig.messages() == {}


# ---- how old it may be


def test_the_kernel_is_told_what_is_left_of_the_validity() -> None:
    rig, node = warmed()
    rig.run(0.59)

    answer = rig.lookup(node, b"f5")

    assert validity(answer) == pytest.approx((0.4, 0.4))
    assert rig.messages() == {}


def test_the_age_counts_from_when_the_listing_was_asked_for() -> None:
    rig, node = filled()
    rig.fs.faults = [Fault("open", delay=0.3)]
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(0.31)
    assert validity(rig.lookup(node, b"f5")) == pytest.approx((0.69, 0.69))
    rig.fs.add(b"d/f5", b"12345")
    rig.run(0.7)

    assert size(rig, node, b"f5") == 5


def test_a_change_of_the_far_side_is_seen_when_the_validity_is_over() -> None:
    rig, node = warmed()
    rig.fs.add(b"d/f5", b"12345")
    assert size(rig, node, b"f5") == 1

    rig.run(VALID)

    assert size(rig, node, b"f5") == 5


@pytest.mark.parametrize("seed", range(30))
def test_nothing_told_is_older_than_the_validity(seed: int) -> None:
    """Whatever is told at t and may be believed for v was true at some time between t + v - 1 s and t; names and sizes, from random
    programs here and there, with answers that take their time."""
    print("seed", seed)
    chosen = random.Random(seed)
    rig, node = filled(30)
    rig.fs.faults = [Fault("open", delay=0.05, times=3), Fault("lookup", delay=0.01, times=20)]
    history: dict[bytes, list[tuple[float, int]]] = {b"f%d" % number: [(0.0, 1)] for number in range(30)}
    now = rig.dispatch.now
    for _ in range(400):
        name = b"f%d" % chosen.randrange(30)
        kind = chosen.random()
        if kind < 0.15:
            length = chosen.randrange(1, 1000)
            rig.fs.add(b"d/" + name, bytes(length))
            history[name].append((now(), length))
        elif kind < 0.2 and history[name][-1][1] >= 0:
            rig.fs.remove(b"d/" + name)
            history[name].append((now(), -1))
        elif kind < 0.25 and history[name][-1][1] >= 0:
            # From here: seen from here at once.
            rig.ask(Opcode.UNLINK, node, name + b"\0")
            history[name] = [(now(), -1)]
        else:
            asked = now()
            unique = rig.start(Opcode.LOOKUP, node, name + b"\0")
            while unique not in rig.answers:
                rig.run(0.005)
            answer = rig.answers[unique]
            told = answer.entry[1] if answer.nodeid else -1
            believed = asked + validity(answer)[0] if answer.nodeid else asked
            since = believed - VALID
            times = [*history[name], (float("inf"), -2)]
            true = {value for (_, value), (end, _) in itertools.pairwise(times) if end >= since}
            assert told in true, (name, told, true)
        rig.run(chosen.choice((0.0, 0.001, 0.03, 0.3)))
    assert events(rig)["ahead_hits"] > 20


def test_that_a_name_does_not_exist_is_never_told_from_a_listing() -> None:
    rig, node = warmed()
    rig.fs.add(b"d/new", b"12")

    assert size(rig, node, b"new") == 2


def test_a_name_that_was_removed_there_is_forgotten_with_the_listing() -> None:
    rig, node = warmed()
    rig.fs.remove(b"d/f5")

    rig.run(VALID)

    assert size(rig, node, b"f5") == -1


def test_open_is_always_told_the_newest() -> None:
    """Close-to-open: what was read ahead has no say in it."""
    rig, node = warmed()
    file = rig.lookup(node, b"f5").nodeid
    rig.fs.add(b"d/f5", b"12345")

    opened = rig.open(file)

    assert bytes(rig.read(file, opened.fh, 0, 100).body) == b"12345"
    assert rig.ask(Opcode.GETATTR, file, bytes(16)).attr[1] == 5
    # And a lookup does not go back to what was listed before.
    assert size(rig, node, b"f5") == 5


def test_entries_of_readdirplus_age_too() -> None:
    rig, node = filled()
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    rig.run(0.5)
    body = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 2, 200, 0, 0, 0)).body
    assert struct.unpack_from("=QQQQII", body)[2:] == (0, 0, 500_000_000, 500_000_000)
    rig.run(0.6)
    body = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 3, 200, 0, 0, 0)).body
    assert struct.unpack_from("=Q", body)[0] == 0


# ---- what is changed from here


def setattr_size(rig: Rig, node: int, name: bytes) -> None:
    file = rig.lookup(node, name).nodeid
    rig.ask(Opcode.SETATTR, file, formats.SETATTR_IN.pack(formats.FATTR_SIZE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def write(rig: Rig, node: int, name: bytes) -> None:
    file = rig.lookup(node, name).nodeid
    opened = rig.open(file, os.O_WRONLY)
    rig.write(file, opened.fh, 0, b"123")
    rig.release(file, opened.fh)
    # The node, and what is known of it, goes away.
    rig.start(Opcode.FORGET, file, struct.pack("=Q", 99))


def truncating_open(rig: Rig, node: int, name: bytes) -> None:
    file = rig.lookup(node, name).nodeid
    rig.release(file, rig.open(file, os.O_WRONLY | os.O_TRUNC).fh)


def create_over(rig: Rig, node: int, name: bytes) -> None:
    answer = rig.ask(Opcode.CREATE, node, formats.CREATE_IN.pack(os.O_WRONLY | os.O_TRUNC, 0o644, 0, 0) + name + b"\0")
    assert answer.error == 0


def unlink(rig: Rig, node: int, name: bytes) -> None:
    assert rig.ask(Opcode.UNLINK, node, name + b"\0").error == 0


def rename_away(rig: Rig, node: int, name: bytes) -> None:
    assert rig.ask(Opcode.RENAME, node, struct.pack("=Q", 1) + name + b"\0away\0").error == 0


def rename_over(rig: Rig, node: int, name: bytes) -> None:
    rig.fs.add(b"other", b"123456")
    assert rig.ask(Opcode.RENAME, 1, struct.pack("=Q", node) + b"other\0" + name + b"\0").error == 0


def exchange(rig: Rig, node: int, name: bytes) -> None:
    rig.fs.add(b"other", b"123456")
    assert rig.ask(Opcode.RENAME2, 1, struct.pack("=QII", node, 2, 0) + b"other\0" + name + b"\0").error == 0


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (setattr_size, 0),
        (write, 3),
        (truncating_open, 0),
        (create_over, 0),
        (unlink, -1),
        (rename_away, -1),
        (rename_over, 6),
        (exchange, 6),
    ],
)
def test_what_this_node_changes_is_seen_at_once(change: Callable[[Rig, int, bytes], None], after: int) -> None:
    rig, node = warmed()

    change(rig, node, b"f5")

    assert size(rig, node, b"f5") == after
    assert size(rig, node, b"f6") == 1
    assert "ahead_hits" in events(rig)


@pytest.mark.parametrize("operation", ["unlink", "write"])
def test_a_listing_that_was_on_the_way_meanwhile_is_not_believed(operation: str) -> None:
    """It may have been made before the change, or after: nobody knows."""
    rig, node = filled()
    file = rig.lookup(node, b"f5").nodeid
    opened = rig.open(file, os.O_WRONLY)
    rig.fs.faults = [Fault("open", b"d", delay=0.2)]
    rig.fs.faults.append(Fault(operation, delay=0.1))
    rig.lookup(node, b"f0")  # the listing is asked for
    if operation == "unlink":
        unique = rig.start(Opcode.UNLINK, node, b"f5\0")
    else:
        unique = rig.start(Opcode.WRITE, file, formats.WRITE_IN.pack(opened.fh, 0, 3, 0, 0, 0) + b"123")
    rig.run(0.15)
    assert unique in rig.answers
    rig.run(0.1)
    rig.fs.faults.clear()

    assert size(rig, node, b"f5") == (-1 if operation == "unlink" else 3)
    rig.messages()
    assert size(rig, node, b"f7") == 1
    assert rig.messages() == {}


@pytest.mark.parametrize("operation", ["unlink", "write"])
def test_a_listing_that_was_made_while_a_change_was_on_the_way_is_not_believed_after_it(operation: str) -> None:
    rig, node = filled()
    file = rig.lookup(node, b"f5").nodeid
    opened = rig.open(file, os.O_WRONLY)
    rig.run(VALID + 0.1)
    rig.fs.faults = [Fault(operation, delay=0.1)]
    if operation == "unlink":
        rig.start(Opcode.UNLINK, node, b"f5\0")
    else:
        rig.start(Opcode.WRITE, file, formats.WRITE_IN.pack(opened.fh, 0, 3, 0, 0, 0) + b"123")
    rig.start(Opcode.RELEASE, file, formats.RELEASE_IN.pack(opened.fh, 0, 0, 0))
    rig.start(Opcode.FORGET, file, struct.pack("=Q", 99))
    rig.run(0.05)
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")  # brings the listing, with the old f5
    rig.run(0.1)
    rig.fs.faults.clear()

    assert size(rig, node, b"f5") == (-1 if operation == "unlink" else 3)
    assert size(rig, node, b"f6") == 1
    assert events(rig)["ahead_hits"] == 1


def test_more_changes_than_are_remembered_drop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NAMES_MAX", 5)
    rig, node = warmed()

    for number in range(10, 17):
        unlink(rig, node, b"f%d" % number)

    assert [size(rig, node, b"f%d" % number) for number in range(8, 20)] == [1, 1] + [-1] * 7 + [1] * 3


def test_the_directorys_own_times_are_not_those_before_the_change() -> None:
    rig = Rig()
    for number in range(3):
        rig.fs.add(b"p/d%d/f" % number)
    parent = rig.walk(b"p")
    rig.run(0.001)
    nodes = [rig.lookup(parent, b"d%d" % number).nodeid for number in range(3)]
    rig.run(0.01)
    before = rig.lookup(parent, b"d2").entry
    assert events(rig)["ahead_hits"] > 1

    unlink(rig, nodes[2], b"f")

    assert rig.lookup(parent, b"d2").entry[4:9] > before[4:9]


def test_names_removed_from_here_are_not_entered_by_readdirplus() -> None:
    rig, node = filled(3)
    fh = rig.ask(Opcode.OPENDIR, node, formats.OPEN_IN.pack(0, 0)).fh
    rig.run(0.001)
    unlink(rig, node, b"f1")

    body = rig.ask(Opcode.READDIRPLUS, node, formats.READ_IN.pack(fh, 2, 4096, 0, 0, 0)).body

    nodeids = [struct.unpack_from("=Q", body, 160 * index)[0] for index in range(3)]
    assert nodeids[0]
    assert not nodeids[1]
    assert nodeids[2]


# ---- whom it answers


def test_another_user_is_not_answered_from_it() -> None:
    rig = Rig()
    for number in range(10):
        rig.fs.add(b"d/f%d" % number, b"1")
    rig.fs.find(b"d").mode = S_IFDIR | 0o700
    rig.fs.find(b"d").uid = rig.uid = 7
    node = rig.walk(b"d")
    rig.run(0.001)
    for number in range(5):
        assert size(rig, node, b"f%d" % number) == 1
    assert events(rig)["ahead_hits"]

    rig.uid = 8
    assert rig.lookup(node, b"f3").error == -errno.EACCES
    assert rig.lookup(node, b"f9").error == -errno.EACCES


def test_a_user_who_may_not_search_any_more_is_not_answered_when_the_server_says_so() -> None:
    rig = Rig()
    for number in range(10):
        rig.fs.add(b"d/f%d" % number, b"1")
    rig.uid = 7
    node = rig.walk(b"d")
    rig.run(0.001)
    for number in range(3):
        rig.lookup(node, b"f%d" % number)
    rig.fs.find(b"d").mode = S_IFDIR | 0o700

    assert rig.lookup(node, b"not listed").error == -errno.EACCES
    assert rig.lookup(node, b"f5").error == -errno.EACCES


def test_chmod_from_here_ends_it() -> None:
    rig = Rig()
    for number in range(10):
        rig.fs.add(b"d/f%d" % number, b"1")
    node = rig.walk(b"d")
    rig.run(0.001)
    rig.uid = 7
    for number in range(3):
        rig.lookup(node, b"f%d" % number)
    rig.uid = 0
    rig.ask(Opcode.SETATTR, node, formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o700, 0, 0, 0, 0))

    rig.uid = 7
    assert rig.lookup(node, b"f5").error == -errno.EACCES


def test_a_directory_that_may_be_searched_but_not_listed_is_left_alone() -> None:
    rig = Rig()
    for number in range(100):
        rig.fs.add(b"d/f%d" % number, b"1")
    rig.fs.find(b"d").mode = S_IFDIR | 0o711
    rig.uid = 7
    node = rig.walk(b"d")
    rig.messages()

    assert [size(rig, node, b"f%d" % number) for number in range(60)] == [1] * 60

    assert rig.messages() == {"lookup": 60, "open": 1}
    assert events(rig)["ahead_refused"] == 1


# ---- servers that go away, or mean ill


def test_a_server_that_is_gone_answers_nothing() -> None:
    rig, node = warmed()

    rig.fs.destroy()

    assert rig.lookup(node, b"f5").error < 0
    assert rig.machine.ahead.cost == 0
    assert len(rig.machine.ahead) == 0


def test_files_with_several_links_are_asked_for() -> None:
    """Another name of it may be written through, and the listing knows nothing of that."""
    rig, node = filled()
    rig.fs.enter(rig.fs.find(b"d"), b"hard", rig.fs.find(b"d/f5"))
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(0.01)
    rig.fs.add(b"d/f5", b"12345")

    assert size(rig, node, b"hard") == 5


def forged(rig: Rig, make: Callable[[], Iterator[bytes]]) -> None:
    """Listings of the server are what *make* yields, whatever was asked for."""
    rig.fs._entries = lambda directory, cookie, size, attrs: make()  # type: ignore[method-assign,assignment]  # a server that means ill


def entry(name: bytes, *, size: int = 77, mode: int = S_IFREG | 0o644, cookie: int = 1) -> bytes:
    return pack_dirent(DirEntry(name, 99, cookie, S_IFREG, Attr(99, mode, 1, 0, 0, 0, size, 0, 4096, 0, 0, 0, 0)))


@pytest.mark.parametrize(
    "listing",
    [
        [entry(b"f5")[:-1]],
        [entry(b"f5") + b"x"],
        [b"\xff" * 300],
        [entry(b"f5").replace(b"f5", b"")],
        [entry(b"f%03d" % number) for number in range(170)],
        [],
    ],
    ids=["cut short", "one byte more", "noise", "empty name", "more than asked for", "nothing"],
)
def test_a_listing_that_is_not_one_is_not_believed_and_asked_for_rarely(listing: list[bytes]) -> None:
    rig, node = filled(40)
    forged(rig, lambda: iter(listing))

    assert [size(rig, node, b"f%d" % number) for number in range(40)] == [1] * 40

    assert rig.messages() == {"lookup": 40, "open": 1}
    rig.run(3.0)
    assert rig.machine.ahead.cost == 0


def test_a_name_told_twice_is_asked_for() -> None:
    rig, node = filled()
    forged(rig, lambda: iter([entry(b"f5"), entry(b"f6"), entry(b"f5", size=78)]))
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(0.01)

    assert size(rig, node, b"f5") == 1
    assert size(rig, node, b"f6") == 77  # whatever the server says of its own files


def test_entries_without_attributes_are_asked_for() -> None:
    rig, node = filled()
    forged(rig, lambda: iter([entry(b"f5", mode=0)]))
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(0.01)

    assert size(rig, node, b"f5") == 1


def test_a_listing_without_end_is_ended_here() -> None:
    rig, node = filled()
    told = iter(range(10**9))

    def endless() -> Iterator[bytes]:
        for number in told:
            yield entry(b"n%d" % number, cookie=number + 1)
            if number % 100 == 99:
                return

    forged(rig, endless)
    for _ in range(5000):
        rig.lookup(node, b"f0")
    held = rig.machine.ahead.cost

    assert held < 3 * FuseOptions().attributes_ahead
    assert next(told) < 10_000
    rig.run(5.0)
    assert rig.machine.ahead.cost == 0
    assert not rig.fs.requests.get("failed")


def test_all_directories_together_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "TOTAL_MAX", 200_000)
    rig = Rig()
    rig.fs.tells_end = True
    for directory in range(50):
        for number in range(60):
            rig.fs.add(b"d%d/f%d" % (directory, number), b"1")
    for directory in range(50):
        node = rig.walk(b"d%d" % directory)
        for number in range(60):
            assert size(rig, node, b"f%d" % number) == 1
        assert rig.machine.ahead.cost <= 200_000

    assert events(rig)["ahead_evicted"] > 20


def test_records_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "RECORDS_MAX", 10)
    rig = Rig()
    for directory in range(50):
        rig.fs.add(b"p/d%d/f" % directory, b"1")
        rig.lookup(rig.walk(b"p/d%d" % directory), b"f")

    assert len(rig.machine.ahead) == 10


def test_directories_that_the_kernel_forgets_take_theirs_with_them() -> None:
    rig, _ = warmed()
    assert rig.machine.ahead.cost
    for other in list(rig.machine.nodes):
        if other.nodeid != 1:
            rig.start(Opcode.FORGET, other.nodeid, struct.pack("=Q", 99))

    assert rig.machine.ahead.cost == 0
    assert len(rig.machine.ahead) == 0


def test_closing_the_mount_while_a_listing_is_on_the_way() -> None:
    rig, node = filled()
    rig.fs.faults = [Fault("open", delay=0.1)]
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")

    rig.machine.close()
    rig.run(3.0)

    assert rig.machine.ahead.cost == 0


def test_a_listing_that_took_too_long_is_not_kept_and_its_directory_is_closed() -> None:
    rig, node = filled(1000)
    before = len(rig.fs.manager.table.handles)
    rig.fs.faults = [Fault("open", delay=VALID + 0.1, times=1)]
    rig.lookup(node, b"f0")
    rig.lookup(node, b"f1")
    rig.run(VALID + 0.3)

    assert rig.machine.ahead.cost == 0
    assert len(rig.fs.manager.table.handles) == before
    # And the next ones bring it.
    for number in range(10):
        rig.lookup(node, b"f%d" % number)
    assert rig.machine.ahead.cost > 0
