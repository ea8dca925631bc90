"""Directories in which programs stand, or that they have open: found again when their server was away; and others, which are let go."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resmgr.channel import Message
from resmgr.fuse import formats, idle, tokens
from resmgr.fuse.formats import Opcode
from resmgr.fuse.idle import IDLE, PERIOD
from resmgr.fuse.options import FuseOptions
from resmgr.fuse.removals import WARY, Removing
from resmgr.fuse.sitting import sitting
from resmgr.hostfs.objects import HostClient, HostHandle
from resmgr.iofunc.handle import Handle
from resmgr.iomsg import IDENTIFY_MAX, Connect, Io
from tests.resmgr.fuse.far import AWAY, Far

LONG = 3 * PERIOD
"""Seconds after which a directory has its token."""
LET_GO = 10.0
"""Seconds after which the server has nothing of it open any more (docs/protocol/delegation.md)."""
Make = Callable[..., Far]


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all was on a file system that is mounted below the served root."""
    monkeypatch.setattr(idle, "SALT_BITS", 0)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Make]:
    made: list[Far] = []
    (tmp_path / "root/d/e/s").mkdir(parents=True)
    (tmp_path / "root/d/e/f").write_bytes(b"0123456789")

    def make(**options: float) -> Far:
        made.append(Far(tmp_path / "root", FuseOptions(**options)))  # type: ignore[arg-type]  # numbers of the table
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def walk(rig: Far, *names: bytes) -> int:
    node = 1
    for name in names:
        node = rig.ask(Opcode.LOOKUP, node, name + b"\0").nodeid
    return node


def look(rig: Far, node: int, name: bytes) -> int:
    """0 or an errno."""
    answer = rig.ask(Opcode.LOOKUP, node, name + b"\0")
    return answer.error or (0 if answer.nodeid else -errno.ENOENT)


def listed(rig: Far, node: int, fh: int) -> set[bytes] | int:
    answer = rig.ask(Opcode.READDIR, node, formats.READ_IN.pack(fh, 0, 4096, 0, 0, 0))
    if answer.error:
        return answer.error
    names, at = set(), 0
    while at < len(answer.body):
        length = struct.unpack_from("=QQI", answer.body, at)[2]
        names.add(bytes(answer.body[at + 24 : at + 24 + length]))
        at += 24 + (length + 7 & ~7)
    return names


def there(rig: Far) -> list[bytes]:
    """Directories below the root that the server has open."""
    fds = [handle.fd for handle in rig.host.manager.table.handles.values() if isinstance(handle, HostHandle) and handle.directory]
    top = os.fsencode(rig.root) + b"/"
    return sorted(path[len(top) :] for fd in fds if (path := os.readlink(b"/proc/self/fd/%d" % fd)).startswith(top))


def above_renamed(root: Path) -> None:
    (root / "d").rename(root / "elsewhere")


def renamed(root: Path) -> None:
    (root / "d/e").rename(root / "d/other")


def moved_and_another_made(root: Path) -> None:
    (root / "d/e").rename(root / "moved")
    (root / "d/e").mkdir()
    (root / "d/e/f").touch()


def exchanged(root: Path) -> None:
    above_renamed(root)
    (root / "d/e").mkdir(parents=True)


def removed(root: Path) -> None:
    shutil.rmtree(root / "d/e")


def removed_and_another_made(root: Path) -> None:
    ino = (root / "d/e").stat().st_ino
    shutil.rmtree(root / "d/e")
    for _ in range(100):
        (root / "d/e").mkdir()
        if (root / "d/e").stat().st_ino == ino:
            break
        (root / "d/e").rmdir()
    else:
        (root / "d/e").mkdir()
    (root / "d/e/f").touch()


def moved_out(root: Path) -> None:
    (root / "d/e").rename(root.parent / "out")


WHILE_AWAY: dict[Callable[[Path], None], bool] = {
    above_renamed: True,
    renamed: True,
    moved_and_another_made: True,
    exchanged: True,
    removed: False,
    removed_and_another_made: False,
    moved_out: False,
}
"""What is done to d/e while nobody serves it, and whether who stands in it still does; else it is ESTALE."""


@pytest.mark.parametrize("fault", ["link", "restart"])
@pytest.mark.parametrize("change", WHILE_AWAY)
def test_who_stands_in_a_directory(far: Make, change: Callable[[Path], None], fault: str) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    rig.fail(fault)
    change(rig.root)
    rig.run(AWAY + 0.1)
    if WHILE_AWAY[change]:
        assert look(rig, node, b"s") == 0
        assert rig.ask(Opcode.MKDIR, node, formats.MKDIR_IN.pack(0o755, 0) + b"new\0").error == 0
        assert next(iter(rig.root.rglob("s"))).with_name("new").is_dir()
    else:
        assert look(rig, node, b"f") == -errno.ESTALE
        assert look(rig, node, b"f") == -errno.ESTALE


def test_a_path_leads_to_a_new_directory_whatever_its_number_is(far: Make) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    rig.fail("restart")
    removed_and_another_made(rig.root)
    rig.run(AWAY + 0.1)
    assert look(rig, node, b"f") == -errno.ESTALE
    assert look(rig, walk(rig, b"d", b"e"), b"f") == 0


@pytest.mark.parametrize("fault", ["restart", "boot"])
@pytest.mark.usefixtures("mounted")
def test_who_stands_in_one_that_was_removed_is_not_in_the_new_one(far: Make, fault: str) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    rig.fail(fault)
    removed_and_another_made(rig.root)
    if (rig.root / "d/e").stat().st_ino != rig.machine.nodes.get(node).ino:  # type: ignore[union-attr]  # it is known
        pytest.skip("the file system does not use inode numbers again")
    rig.run(AWAY + 0.1)
    assert walk(rig, b"d", b"e") == node, "nothing is known of it yet"
    rig.run(LONG)
    new = walk(rig, b"d", b"e")
    assert new != node
    assert rig.machine.drops["directories_replaced"] == 1
    assert look(rig, node, b"f") == -errno.ESTALE
    assert look(rig, new, b"f") == 0
    rig.run(LONG)
    assert look(rig, node, b"f") == -errno.ESTALE
    assert look(rig, walk(rig, b"d", b"e"), b"f") == 0


@pytest.mark.parametrize("fault", ["link", "restart", "boot"])
@pytest.mark.usefixtures("mounted")
def test_who_stands_in_one_that_nothing_was_done_to(far: Make, fault: str) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    for _ in range(3):
        rig.run(LONG)
        rig.fail(fault)
        rig.run(AWAY + 0.1)
        assert walk(rig, b"d", b"e") == node
        rig.run(LONG)
        assert look(rig, node, b"f") == 0
        rig.run(2 * LET_GO)
        assert look(rig, node, b"x") == -errno.ENOENT
        assert there(rig) == [b"d/e"], "no handle is left over"
    assert not rig.machine.drops["directories_replaced"]


@pytest.mark.parametrize("change", WHILE_AWAY)
def test_an_open_directory(far: Make, change: Callable[[Path], None]) -> None:
    rig = far(lease=0)
    node = walk(rig, b"d", b"e")
    fh = rig.ask(Opcode.OPENDIR, node, bytes(8)).fh
    rig.run(LONG)
    rig.fail("restart")
    change(rig.root)
    rig.run(AWAY + 0.1)
    assert listed(rig, node, fh) == ({b".", b"..", b"f", b"s"} if WHILE_AWAY[change] else -errno.ESTALE)


def test_one_that_has_no_token_yet_is_found_below_one_that_has(far: Make) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    new = walk(rig, b"d", b"e", b"s")
    rig.fail("restart")
    (rig.root / "d/e/s/x").touch()
    above_renamed(rig.root)
    (rig.root / "d/e/s").mkdir(parents=True)
    rig.run(AWAY + 0.1)
    assert look(rig, new, b"x") == 0
    assert look(rig, node, b"f") == 0


def test_many_directories_are_a_few_messages(far: Make) -> None:
    rig = far()
    count = 3 * IDENTIFY_MAX
    for number in range(count):
        (rig.root / f"d{number}").mkdir()
        walk(rig, b"d%d" % number)
    seen = rig.messages_seen
    rig.run(LONG - PERIOD)
    assert rig.machine.drops["identified"] == count
    assert rig.messages_seen - seen <= 2 * (count // IDENTIFY_MAX + 2), "messages and their replies"


def test_no_more_tokens_than_are_kept(far: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 2)
    rig = far()
    nodes = [rig.machine.nodes.get(walk(rig, *names)) for names in ((b"d",), (b"d", b"e"), (b"d", b"e", b"s"))]
    rig.run(LONG)
    assert sum(bool(node and rig.machine.tokens.of(node)) for node in nodes) == 2


def test_what_the_kernel_has_forgotten_is_forgotten(far: Make) -> None:
    rig = far()
    found = rig.machine.nodes.get(walk(rig, b"d"))
    assert found is not None
    rig.run(LONG)
    assert rig.machine.tokens.of(found)
    rig.start(Opcode.FORGET, found.nodeid, struct.pack("=Q", found.lookups))
    assert not rig.machine.tokens.of(found)


@pytest.mark.parametrize("reply", [None, b"", b"\xff", bytes(500), -errno.EOPNOTSUPP, -errno.EIO, -errno.ENOSYS])
@pytest.mark.usefixtures("mounted")
def test_servers_that_tell_no_tokens_or_nonsense(far: Make, reply: bytes | int | None) -> None:
    rig = far()
    asked = []

    def identify(message: Message, client: HostClient, handle: Handle, flags: int) -> None:
        asked.append(message)
        if isinstance(reply, int):
            message.error(-reply)
        elif reply is not None:
            message.reply(0, reply)

    rig.host.manager._io[Io.IDENTIFY] = identify
    node = walk(rig, b"d", b"e")
    rig.run(10 * IDLE)
    assert len(asked) == 1
    assert there(rig) == [b"d", b"d/e"], "somebody may stand there"
    above_renamed(rig.root)
    assert look(rig, node, b"f") == 0
    rig.fail("restart")
    rig.run(AWAY + 0.1)
    assert look(rig, node, b"f") == -errno.ESTALE


@pytest.mark.usefixtures("mounted")
def test_what_nobody_uses_is_let_go(far: Make) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    fh = rig.ask(Opcode.OPENDIR, node, bytes(8)).fh
    assert listed(rig, node, fh) == {b".", b"..", b"f", b"s"}
    rig.ask(Opcode.RELEASEDIR, node, struct.pack("=QIIQ", fh, 0, 0, 0))
    rig.run(4)
    assert there(rig), "kept for what comes next"
    rig.run(LET_GO - 4)
    assert there(rig) == []
    assert not len(rig.machine.handles)
    seen = rig.messages_seen
    assert look(rig, node, b"x") == -errno.ENOENT
    assert rig.messages_seen - seen <= 4, "it is found by its token, then asked"
    rig.run(LET_GO)
    above_renamed(rig.root)
    assert look(rig, node, b"f") == 0, "and where it was moved"
    assert rig.machine.drops["found_by_token"] == 2


def test_what_the_server_has_mounted_anyway_is_kept(far: Make) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(10 * LET_GO)
    assert there(rig) == [b"d", b"d/e"]
    seen = rig.messages_seen
    rig.run(10 * LET_GO)
    assert rig.messages_seen == seen
    assert look(rig, node, b"x") == -errno.ENOENT
    assert not rig.machine.drops["walks"]


@pytest.mark.usefixtures("mounted")
def test_what_is_used_stays(far: Make) -> None:
    rig = far(lease=0, negative_valid=0)
    node = walk(rig, b"d", b"e")
    for number in range(20):
        rig.run(2)
        assert look(rig, node, b"x%d" % number) == -errno.ENOENT
    assert b"d/e" in there(rig)
    assert not rig.machine.drops["walks"]


@pytest.mark.parametrize("how", ["open", "stands"])
@pytest.mark.usefixtures("mounted")
def test_what_a_program_has_stays(far: Make, how: str) -> None:
    rig = far()
    paths = {b"d/e", b"not/there", b"d/gone (deleted)"}
    node = walk(rig, b"d", b"e")
    if how == "open":
        fh = rig.ask(Opcode.OPENDIR, node, bytes(8)).fh
    else:
        rig.machine.sitting = lambda then: then(paths)
    rig.run(10 * LET_GO)
    assert set(there(rig)) == {b"d/e"}
    assert rig.machine.drops["handles_idle"] == 1, "d"
    if how == "open":
        rig.ask(Opcode.RELEASEDIR, node, struct.pack("=QIIQ", fh, 0, 0, 0))
    paths.clear()
    rig.run(LET_GO)
    assert there(rig) == []


@pytest.mark.usefixtures("mounted")
def test_whose_rights_were_taken_meanwhile_is_not_let_in(far: Make) -> None:
    rig = far()
    rig.uid = 4001
    os.chmod(rig.root.parent, 0o755)
    node = walk(rig, b"d", b"e")
    rig.run(LET_GO)
    (rig.root / "d").chmod(0o700)
    assert look(rig, node, b"x") in (-errno.ESTALE, -errno.EACCES)


def test_after_another_boot_it_is_the_same(far: Make) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    rig.fail("boot")
    above_renamed(rig.root)
    rig.run(AWAY + 0.1)
    assert look(rig, node, b"f") == 0


def test_a_server_that_finds_nothing_by_tokens(far: Make) -> None:
    """One that may not open by handle: paths lead there as ever, if the directory is the token's."""
    rig = far(lease=0)
    node = walk(rig, b"d", b"e")
    fh = rig.ask(Opcode.OPENDIR, node, bytes(8)).fh
    rig.run(LONG)
    rig.fail("restart")
    rig.run(AWAY + 0.1)
    reopen = rig.host.manager._connect[Connect.REOPEN]

    def only_named(message: Message, client: HostClient, request: object, base: Handle | None) -> None:
        if base is None:
            message.error(errno.ESTALE)
        else:
            reopen(message, client, request, base)  # type: ignore[arg-type]

    rig.host.manager._connect[Connect.REOPEN] = only_named
    assert look(rig, node, b"x") == -errno.ENOENT
    assert look(rig, node, b"f") == 0
    assert listed(rig, node, fh) == {b".", b"..", b"f", b"s"}


@pytest.mark.parametrize("by_path", [False, True])
def test_who_has_a_signal_does_not_wait_until_it_is_found(far: Make, by_path: bool) -> None:
    rig = far()
    node = walk(rig, b"d", b"e")
    rig.run(LONG)
    rig.fail("restart")
    rig.run(AWAY + 0.1)
    asked: list[Message] = []

    def hang(message: Message, client: HostClient, request: object, base: Handle | None) -> None:
        if by_path and base is None:
            message.error(errno.ESTALE)
        else:
            asked.append(message)
            message.on_unblock = lambda: message.error(errno.EINTR)

    rig.host.manager._connect[Connect.REOPEN] = hang
    unique = rig.start(Opcode.LOOKUP, node, b"x\0")
    rig.run(0.1)
    assert len(asked) == 1
    rig.start(Opcode.INTERRUPT, 0, formats.INTERRUPT_IN.pack(unique))
    rig.run(rig.machine.options.interrupt_delay + 0.1)
    assert rig.answers[unique].error == -errno.EINTR
    assert len(asked) == 1


@pytest.mark.usefixtures("mounted")
def test_one_from_which_something_is_being_removed_stays_until_then(far: Make) -> None:
    rig = far()
    found = rig.machine.nodes.get(walk(rig, b"d", b"e"))
    assert found is not None
    found.removing = Removing()
    found.removing.names[b"f"] = 1
    rig.run(10 * LET_GO)
    assert there(rig) == [b"d/e"]
    # It failed, so that is known for a while.
    del found.removing.names[b"f"]
    found.removing.wary = rig.dispatch.now() + WARY
    rig.run(LET_GO)
    assert there(rig) == []


def test_who_stands_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    assert sitting(os.fsencode(tmp_path)) == {b"a b"}
    assert sitting(os.fsencode(tmp_path / "a")) == set()
    assert os.fsencode(tmp_path / "a b")[1:] in sitting(b"")
