"""Real mounts: set-id bits of a file that somebody changes who may not keep them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmgr.testing.fusemount import Served

pytestmark = pytest.mark.priv
USER = 4001
PROGRAM = """
import os, sys
path, source, what, uid = *sys.argv[1:4], int(sys.argv[4])
fd = os.open(path, os.O_RDWR | (os.O_APPEND if what == "append" else 0))
there = os.open(source, os.O_RDONLY)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
if what in ("write", "append"):
    for _ in range(2):
        os.write(fd, b"abc")
elif what == "synchronous":
    os.pwritev(fd, [b"abc"], 0, os.RWF_DSYNC)
elif what == "truncate":
    os.ftruncate(fd, 3)
elif what == "space":
    os.posix_fallocate(fd, 0, 20)
else:
    os.copy_file_range(there, fd, 6, 0, 0)
print(oct(os.fstat(fd).st_mode & 0o7777))
"""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Where it is mounted, and the directory that is served."""
    place = tmp_path_factory.mktemp("setid")
    (place / "mnt").mkdir()
    (place / "served").mkdir()
    (place / "served/source").write_bytes(b"source")
    served = Served(place / "mnt", {}, place / "served")
    yield served.path, place / "served"
    served.close()


def changed(mount: tuple[Path, Path], what: str, uid: int, owner: int) -> tuple[str, str]:
    """The mode that a program sees that has done *what* as *uid* to a file that root has opened, and the one that the file has."""
    path = mount[1] / "f"
    path.unlink(missing_ok=True)
    path.write_bytes(b"0123456789")
    os.chown(path, owner, owner)
    path.chmod(0o6777)
    arguments = [str(mount[0] / "f"), str(mount[0] / "source"), what, str(uid)]
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert not result.stderr
    return result.stdout.strip(), oct(path.stat().st_mode & 0o7777)


@pytest.mark.parametrize("owner", [0, USER])
@pytest.mark.parametrize("what", ["write", "append", "synchronous", "truncate", "space", "copy"])
def test_they_go_when_another_changes_what_root_has_opened(mount: tuple[Path, Path], what: str, owner: int) -> None:
    assert changed(mount, what, USER, owner) == ("0o777", "0o777")


@pytest.mark.parametrize("what", ["write", "append", "synchronous", "truncate", "space", "copy"])
def test_they_stay_when_root_does(mount: tuple[Path, Path], what: str) -> None:
    assert changed(mount, what, 0, 0) == ("0o6777", "0o6777")
