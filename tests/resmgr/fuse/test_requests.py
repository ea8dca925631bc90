"""What each thing that programs do to names and files costs: requests of a real kernel, and messages to the server that they become.

The table is printed (`pytest -s`). Its messages are asserted, but for CLOSE, WATCH and IDENTIFY, which no program waits for; the kernel's
requests differ between kernels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from resmgr.testing.fusemount import Served

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
COUNT = 10
UNASKED = ("FORGET", "BATCH_FORGET", "RELEASE", "RELEASEDIR", "INTERRUPT")


@pytest.fixture
def served() -> Iterator[Path]:
    """In memory: a disk that is slow at the moment is left to threads, whose changes are told to their makers, too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def make(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def create(path: Path) -> None:
    fd = make(path)
    os.write(fd, b"x" * 1024)
    os.close(fd)


def unpack(path: Path) -> None:
    """As tar does it."""
    fd = make(path)
    os.write(fd, b"x" * 1024)
    os.utime(fd, (1, 2))
    os.close(fd)


def save(path: Path) -> None:
    """As editors do it."""
    with open(f"{path}.new", "xb") as file:
        file.write(b"x" * 1024)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def journal(path: Path) -> None:
    """As databases do it, over and over."""
    fd = make(path.with_name("journal"))
    os.write(fd, b"x" * 1024)
    os.fsync(fd)
    os.close(fd)
    os.unlink(path.with_name("journal"))


def other(path: Path) -> Path:
    return path.with_name("other-" + path.name)


WORK: tuple[tuple[str, Callable[[Path], object], dict[str, float]], ...] = (
    ("create", create, {"open": 1, "write": 1}),
    ("stat", os.stat, {}),
    ("chmod", lambda path: path.chmod(0o600), {"setattr": 1}),
    ("stat after it", os.stat, {}),
    ("link", lambda path: os.link(path, other(path)), {"link": 1}),
    ("unlink that", lambda path: os.unlink(other(path)), {"unlink": 1}),
    ("rename", lambda path: os.rename(path, other(path)), {"rename": 1}),
    ("rename back", lambda path: os.rename(other(path), path), {"rename": 1}),
    ("unlink", os.unlink, {"unlink": 1}),
    ("create again", create, {"open": 1, "write": 1}),
    ("save", save, {"open": 1, "write": 1, "sync": 1, "rename": 1}),
    ("unlink again", os.unlink, {"unlink": 1}),
    ("unpack", unpack, {"open": 1, "write": 1, "setattr": 1}),
    ("journal", journal, {"open": 1, "write": 1, "sync": 1, "unlink": 1}),
    ("symlink", lambda path: os.symlink("x", other(path)), {"symlink": 1}),
    ("unlink the link", lambda path: os.unlink(other(path)), {"unlink": 1}),
    ("mkdir", lambda path: other(path).mkdir(), {"mkdir": 1}),
    ("create in it", lambda path: create(other(path) / "f"), {"open": 1, "write": 1}),
    ("unlink in it", lambda path: os.unlink(other(path) / "f"), {"unlink": 1}),
    ("rmdir", lambda path: other(path).rmdir(), {"rmdir": 1}),
)


def test_messages_of_what_programs_do(serve: Serve, served: Path) -> None:
    # As long as the test may take on a busy machine.
    mount = serve(served, permissions="server", lease=3600)
    (served / "above").mkdir()
    os.listdir(mount.path / "above")
    folder = mount.path / "above/new"
    folder.mkdir()
    before = requests(mount)
    mount.order("served")
    wrong = []
    for name, work, expected in WORK:
        for number in range(COUNT):
            work(folder / f"n{number}")
        after = requests(mount)
        asked = {kind: (after[kind] - before.get(kind, 0)) / COUNT for kind in after if after[kind] != before.get(kind, 0)}
        before = after
        sent = {kind: count / COUNT for kind, count in cast("dict[str, int]", mount.order("served")).items() if kind != "identify"}
        # Where several go in a row, the directory is asked for, and then they are told done before the server has them.
        sent.pop("delegation", None)
        if early := sent.pop("remove", 0.0):
            sent["unlink"] = sent.get("unlink", 0.0) + early
        print(f"{name:16}{shown({kind: count for kind, count in asked.items() if kind not in UNASKED}):72}{shown(sent)}")
        if sent != expected:
            wrong.append((name, sent))
    assert not wrong


def requests(mount: Served) -> dict[str, int]:
    return cast("dict[str, dict[str, int]]", mount.order("statistics"))["requests"]


def shown(counts: dict[str, float]) -> str:
    return " ".join(f"{kind} {count:g}" for kind, count in counts.items())
