"""What a program has open is the same file whatever becomes of its name, also when somebody else renames, replaces or removes it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served

pytestmark = pytest.mark.priv
OLD, NEW = 0o640, 0o644
PARTED: dict[str, Callable[[Path], object]] = {
    "replaced": lambda name: os.rename(name.with_name("other"), name),
    "removed": os.unlink,
    "renamed": lambda name: os.rename(name, name.with_name("elsewhere")),
}
"""What another program does to the name of a file that is open."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    served = tmp_path / "served"
    served.mkdir()
    for name, mode, text in (("name", OLD, b"old"), ("other", NEW, b"new file")):
        (served / name).write_bytes(text)
        (served / name).chmod(mode)
    return served


def state(path: Path) -> object:
    """All of a file that could have been changed; None if it is not there."""
    if not path.exists():
        return None
    status = path.stat()
    return path.read_bytes(), status.st_mode, status.st_uid, status.st_mtime_ns, os.listxattr(path)


@pytest.mark.parametrize("by", ["client", "local program"])
@pytest.mark.parametrize("what", PARTED)
def test_a_descriptor_leads_to_what_was_opened(serve: Callable[..., Served], directory: Path, what: str, by: str) -> None:
    mount = serve(directory)
    other = serve(directory).path if by == "client" else directory
    fd = os.open(mount.path / "name", os.O_RDWR)
    link = f"/proc/self/fd/{fd}"
    assert os.fstat(fd).st_size == 3
    PARTED[what](other / "name")
    before = state(directory / "name"), state(directory / "other")

    os.fchmod(fd, 0o600)
    os.fchown(fd, 12, 13)
    os.utime(fd, ns=(5, 7))
    os.setxattr(fd, "user.mark", b"mine")
    assert os.getxattr(fd, "user.mark") == b"mine"
    assert (state(directory / "name"), state(directory / "other")) == before
    assert os.listxattr(fd) == ["user.mark"]
    os.removexattr(fd, "user.mark")
    assert os.fstatvfs(fd).f_namemax == 255
    status = os.fstat(fd)
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid, status.st_mtime_ns) == (0o600, 12, 13, 7)
    with open(link, "rb") as again:
        assert again.read() == b"old"
    with open(link, "r+b") as again:
        again.write(b"OLD")
    os.truncate(link, 2)
    assert os.pread(fd, 9, 0) == b"OL"

    assert (state(directory / "name"), state(directory / "other")) == before
    elsewhere = state(directory / "elsewhere")
    assert (elsewhere is not None) == (what == "renamed")
    os.close(fd)


def test_the_name_leads_to_what_is_there_now(serve: Callable[..., Served], directory: Path) -> None:
    """Also for the user who has the old file open, at once."""
    mount = serve(directory)
    with open(mount.path / "name", "rb") as old:
        PARTED["replaced"](directory / "name")
        with open(mount.path / "name", "rb") as new:
            assert new.read() == b"new file"
        assert old.read() == b"old"
        os.unlink(directory / "name")
        with pytest.raises(FileNotFoundError):
            open(mount.path / "name", "rb")  # noqa: SIM115
        with open(f"/proc/self/fd/{old.fileno()}", "rb") as again:
            assert again.read() == b"old"


def test_a_program_is_run_by_its_descriptor(serve: Callable[..., Served], directory: Path) -> None:
    (directory / "name").write_bytes(Path("/bin/true").read_bytes())
    (directory / "name").chmod(0o755)
    mount = serve(directory)
    fd = os.open(mount.path / "name", os.O_RDONLY)
    PARTED["removed"](directory / "name")
    child = os.fork()
    if not child:
        ctypes.CDLL(None).fexecve(fd, (ctypes.c_char_p * 2)(b"true", None), (ctypes.c_char_p * 1)(None))
        os._exit(errno.ENOEXEC)
    assert os.waitpid(child, 0)[1] == 0
    os.close(fd)
