"""What a server's status becomes for the kernel: never ENOSYS, by which the kernel would switch an operation off for the whole mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from resmgr.fuse import formats
from resmgr.fuse.formats import Opcode
from resmgr.fuse.machine import OPERATIONS
from resmgr.fuse.request import told
from resmgr.testing.fusemount import Served
from resmgr.testing.fuserig import Rig
from resmgr.testing.memfs import Fault

LOCK = formats.LK_IN.pack
NOT_HERE = (*(Opcode.COPY_FILE_RANGE, Opcode.TMPFILE, Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.SETXATTR, Opcode.REMOVEXATTR),)
"""What the rig's manager never has: EXDEV, EOPNOTSUPP."""
UNANSWERED = (Opcode.RELEASE, Opcode.RELEASEDIR)


def requests(directory: int, leaf: int, link: int, listed: int, opened: int) -> dict[int, tuple[int, bytes]]:
    """Each operation as the kernel sends it: node and body. *listed*, *opened*: the open directory and file."""
    mode = formats.SETATTR_IN.pack(formats.FATTR_MODE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0o700, 0, 0, 0, 0)
    return {
        Opcode.LOOKUP: (directory, b"other\0"),
        Opcode.GETATTR: (leaf, formats.GETATTR_IN.pack(0, 0)),
        Opcode.SETATTR: (leaf, mode),
        Opcode.READLINK: (link, b""),
        Opcode.SYMLINK: (directory, b"new\0text\0"),
        Opcode.MKNOD: (directory, formats.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"new\0"),
        Opcode.MKDIR: (directory, formats.MKDIR_IN.pack(0o755, 0) + b"new\0"),
        Opcode.UNLINK: (directory, b"f\0"),
        Opcode.RMDIR: (directory, b"e\0"),
        Opcode.RENAME: (directory, formats.RENAME_IN.pack(directory) + b"f\0g\0"),
        Opcode.RENAME2: (directory, formats.RENAME2_IN.pack(directory, 0) + b"f\0g\0"),
        Opcode.LINK: (directory, formats.LINK_IN.pack(leaf) + b"new\0"),
        Opcode.OPEN: (leaf, formats.OPEN_IN.pack(0, 0)),
        Opcode.READ: (leaf, formats.READ_IN.pack(opened, 5000, 10, 0, 0, 0)),
        Opcode.WRITE: (leaf, formats.WRITE_IN.pack(opened, 0, 1, 0, 0, os.O_SYNC) + b"x"),
        Opcode.STATFS: (leaf, b""),
        Opcode.RELEASE: (leaf, formats.RELEASE_IN.pack(opened, 0, 0, 0)),
        Opcode.FSYNC: (leaf, formats.FSYNC_IN.pack(opened, 0)),
        Opcode.FLUSH: (leaf, formats.FLUSH_IN.pack(opened, 0)),
        Opcode.OPENDIR: (directory, formats.OPEN_IN.pack(0, 0)),
        Opcode.READDIR: (directory, formats.READ_IN.pack(listed, 0, 4096, 0, 0, 0)),
        Opcode.READDIRPLUS: (directory, formats.READ_IN.pack(listed, 0, 4096, 0, 0, 0)),
        Opcode.RELEASEDIR: (directory, formats.RELEASE_IN.pack(listed, 0, 0, 0)),
        Opcode.FSYNCDIR: (directory, formats.FSYNC_IN.pack(listed, 0)),
        Opcode.GETLK: (leaf, LOCK(opened, 1, 0, 9, 1, 1, 0)),
        Opcode.SETLK: (leaf, LOCK(opened, 1, 0, 9, 1, 1, 0)),
        Opcode.SETLKW: (leaf, LOCK(opened, 1, 0, 9, 1, 1, 0)),
        Opcode.POLL: (leaf, formats.POLL_IN.pack(opened, 1, formats.POLL_SCHEDULE, 1)),
        Opcode.IOCTL: (leaf, formats.IOCTL_IN.pack(opened, 0, 0x80047801, 0, 0, 4)),
        Opcode.ACCESS: (leaf, formats.ACCESS_IN.pack(4)),
        Opcode.CREATE: (directory, formats.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"new\0"),
        Opcode.FALLOCATE: (leaf, formats.FALLOCATE_IN.pack(opened, 0, 100, 0)),
        Opcode.LSEEK: (leaf, formats.LSEEK_IN.pack(opened, 0, os.SEEK_DATA)),
        Opcode.COPY_FILE_RANGE: (leaf, formats.COPY_IN.pack(opened, 0, leaf, opened, 0, 1, 0)),
        Opcode.TMPFILE: (directory, formats.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"\0"),
        Opcode.STATX: (leaf, formats.STATX_IN.pack(0, 0, 0, 0xFFF)),
        Opcode.GETXATTR: (leaf, formats.GETXATTR_IN.pack(100) + b"user.a\0"),
        Opcode.LISTXATTR: (leaf, formats.GETXATTR_IN.pack(100)),
        Opcode.SETXATTR: (leaf, formats.SETXATTR_IN.pack(1, 0) + b"user.a\0x"),
        Opcode.REMOVEXATTR: (leaf, b"user.a\0"),
    }


@pytest.mark.parametrize("opcode", OPERATIONS, ids=lambda opcode: Opcode(opcode).name)
def test_a_server_that_answers_enosys_switches_nothing_off(rig: Rig, opcode: int) -> None:
    rig.fs.add(b"d/f", b"123")
    rig.fs.add(b"d/e/x")
    rig.ask(Opcode.SYMLINK, rig.walk(b"d"), b"l\0text\0")
    directory, leaf, link = rig.walk(b"d"), rig.walk(b"d/f"), rig.walk(b"d/l")
    opened = rig.open(leaf, os.O_RDWR).fh
    listed = rig.ask(Opcode.OPENDIR, directory, bytes(8)).fh
    rig.run(5)
    node, body = requests(directory, leaf, link, listed, opened)[opcode]
    rig.fs.faults.append(Fault("*", code=errno.ENOSYS))

    unique = rig.start(opcode, node, body)
    rig.run(5)

    assert rig.answers[unique].error != -errno.ENOSYS
    if opcode not in UNANSWERED:
        rig.fs.faults.clear()
        honest = rig.start(opcode, node, body)
        rig.run(5)
        lacking = (-errno.EXDEV, -errno.EOPNOTSUPP) if opcode in NOT_HERE else (0, -errno.ENOTTY, -errno.ENOLCK, -errno.ENOTEMPTY)
        assert rig.answers[honest].error in lacking


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (-errno.ENOSYS, errno.EOPNOTSUPP),
        (-errno.EBADF, errno.ESTALE),
        (-errno.EHOSTDOWN, errno.EHOSTDOWN),
        (-511, 511),
        (-512, errno.EIO),
        (-(1 << 62), errno.EIO),
    ],
)
def test_the_kernel_is_told_what_it_takes(status: int, code: int) -> None:
    assert told(status) == code


def test_an_errno_that_fits_no_answer_is_eio(rig: Rig) -> None:
    rig.fs.add(b"f")
    rig.fs.faults.append(Fault("lookup", code=1 << 40))

    assert rig.lookup(1, b"f").error == -errno.EIO


@pytest.mark.priv
def test_the_rest_of_the_mount_goes_on(serve: Callable[..., Served]) -> None:
    mount = serve(entry_valid=0.0, attr_valid=0.0)
    for name in ("bad", "good"):
        mount.order("write", path=f"{name}/f", data="123")
    for operation in ("open", "lookup", "read", "write", "sync", "setattr", "mkdir", "unlink", "rename"):
        mount.fault(operation=operation, name="f" if operation in ("open", "read", "write", "sync") else None, code=errno.ENOSYS)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: os.listdir(mount.path / "bad"),
            lambda: os.mkdir(mount.path / "bad/new"),
            lambda: os.rename(mount.path / "bad/f", mount.path / "bad/g"),
            lambda: os.chmod(mount.path / "bad/f", 0o600),
            lambda: (mount.path / "bad/f").read_bytes(),
            lambda: (mount.path / "bad/f").write_bytes(b"123"),
        )
        for attempt in attempts:
            try:
                attempt()
            except OSError as error:
                assert error.errno != errno.ENOSYS  # noqa: PT017  # most of them succeed
        mount.order("heal")

    assert os.listdir(mount.path / "good") == ["f"]
    assert (mount.path / "good/f").read_bytes() == b"123"
    os.rename(mount.path / "good/f", mount.path / "good/g")
    os.mkdir(mount.path / "good/new")
    with open(mount.path / "good/g", "r+b") as file:
        os.fsync(file.fileno())
