"""Directories below one with an access list: they are leased, and each user is told what that user may know."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.options import FuseOptions, Permissions
from tests.resmgr.fuse.far import Far

pytestmark = pytest.mark.priv
ALICE, BOB = 4001, 4002


def access_list(user: int) -> bytes:
    """The owner everything, *user* reading and searching, nobody else."""
    entries = ((1, 7, 0xFFFFFFFF), (2, 5, user), (4, 0, 0xFFFFFFFF), (0x10, 5, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    root = tmp_path / "root"
    (root / "shut/sub").mkdir(parents=True)
    (root / "shut/sub/f").write_bytes(b"secret")
    for path in (root, root / "shut/sub"):
        path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    os.setxattr(root / "shut", "system.posix_acl_access", access_list(ALICE))
    made = Far(root, FuseOptions(permissions=Permissions.SERVER))
    # Nothing is changed but what nobody watches, so nobody needs to look.
    monkeypatch.setattr(type(made.there), "attach_fd", lambda *_: None)
    monkeypatch.setattr(type(made.there), "detach_fd", lambda *_: None)
    yield made
    made.close()


def walk(rig: Far, uid: int, *names: bytes) -> tuple[int, int]:
    """Node and error of the last of *names*, looked up as *uid*."""
    rig.uid = uid
    node = error = 0
    place = 1
    for name in names:
        answer = rig.ask(Opcode.LOOKUP, place, name + b"\0")
        error = answer.error
        if error:
            return 0, error
        node = place = answer.nodeid
        rig.run(0.01)
    return node, error


def test_another_user_is_told_nothing_of_what_one_was_told(rig: Far) -> None:
    sub, _ = walk(rig, ALICE, b"shut", b"sub")
    shut, _ = walk(rig, ALICE, b"shut")
    file, _ = walk(rig, ALICE, b"shut", b"sub", b"f")
    assert rig.machine.nodes.get(sub).lease is not None  # type: ignore[union-attr]  # it is there
    assert rig.machine.nodes.get(shut).lease is None  # type: ignore[union-attr]  # it is there
    listing = rig.ask(Opcode.OPENDIR, sub, bytes(8))
    assert listing.error == 0
    assert b"f" in rig.ask(Opcode.READDIR, sub, formats.READ_IN.pack(listing.fh, 0, 4096, 0, 0, 0)).body
    assert rig.ask(Opcode.LOOKUP, sub, b"none\0").error in (0, -errno.ENOENT)
    # The kernel may have all of these nodes from her, and ask for him by their numbers.
    rig.uid = BOB
    for node, name in (shut, b"sub"), (sub, b"f"), (sub, b"none"):
        assert rig.ask(Opcode.LOOKUP, node, name + b"\0").error == -errno.EACCES, name
    assert rig.ask(Opcode.GETATTR, file, bytes(16)).error == -errno.EACCES
    assert rig.ask(Opcode.OPENDIR, sub, bytes(8)).error == -errno.EACCES
    assert rig.ask(Opcode.OPEN, file, formats.OPEN_IN.pack(os.O_RDONLY, 0)).error == -errno.EACCES
    # And she is told again.
    assert walk(rig, ALICE, b"shut", b"sub", b"f") == (file, 0)


def test_what_is_below_is_believed_no_longer_than_without_a_lease(rig: Far) -> None:
    """Nobody tells when the list is changed, so each way down is asked for again."""
    sub, _ = walk(rig, ALICE, b"shut", b"sub")
    rig.run(0.1)
    answer = rig.ask(Opcode.LOOKUP, sub, b"f\0")
    assert struct.unpack_from("=QQ", answer.body, 16) == (1, 1)
    os.setxattr(rig.root / "shut", "system.posix_acl_access", access_list(BOB))
    assert walk(rig, ALICE, b"shut", b"sub")[1] == -errno.EACCES
    assert walk(rig, BOB, b"shut", b"sub", b"f")[1] == 0
