"""Delegations through a real kernel: what opening a file again costs, and what programs of the server's machine see of it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]
SOON = 30.0
"""Seconds in which something must be seen that takes milliseconds on a machine with nothing else to do. Leases end after 45."""


@pytest.fixture
def served() -> Iterator[Path]:
    """In memory: a disk that is slow at the moment is left to threads, and nothing on it is delegated."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "d").mkdir()
        (Path(directory) / "d/f").write_bytes(b"first" * 100)
        yield Path(directory)


def events(mount: Served) -> dict[str, int]:
    return cast("dict[str, dict[str, int]]", mount.order("statistics"))["events"]


def messages(mount: Served) -> dict[str, int]:
    """To the server since the last call, but for those that nobody waits for."""
    sent = cast("dict[str, int]", mount.order("served"))
    return {name: count for name, count in sent.items() if name not in ("identify", "delegation")}


def leased(mount: Served, name: str) -> None:
    """Have changes of the names in directory *name* told, and of those on the way to it: else they are believed for a second, and who takes
    longer asks for them again."""
    os.listdir(mount.path)
    os.listdir(mount.path / name)


def read_again(mount: Served, path: Path) -> bytes:
    """Read a file until that is done without the server."""
    end = time.monotonic() + SOON
    while True:
        before = events(mount).get("delegated_opens", 0)
        data = path.read_bytes()
        if events(mount).get("delegated_opens", 0) > before:
            return data
        assert time.monotonic() < end, "never delegated"


def while_it_ran(mount: Served, costs: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What *costs* says. A daemon that had no turn for a second gives all back: then once more."""
    end = time.monotonic() + SOON
    while True:
        before = events(mount).get("delegations_stalled", 0)
        sent = costs()
        if events(mount).get("delegations_stalled", 0) == before:
            return sent
        assert time.monotonic() < end, "stands still again and again"


def test_a_file_that_was_read_is_opened_without_a_message(serve: Serve, served: Path) -> None:
    mount = serve(served, attr_valid=0, entry_valid=0)
    leased(mount, "d")
    path = mount.path / "d/f"

    def costs() -> dict[str, int]:
        for _ in range(3):
            path.read_bytes()
        messages(mount)
        for _ in range(20):
            assert path.read_bytes() == b"first" * 100
        with path.open("rb") as one, path.open("rb") as two:
            assert one.read() == two.read()
        return messages(mount)

    assert while_it_ran(mount, costs) == {}
    assert events(mount)["delegations"] >= 1


def test_what_is_read_once_is_not_asked_for(serve: Serve, served: Path) -> None:
    for number in range(20):
        (served / f"d/n{number}").write_bytes(b"x")
    mount = serve(served)
    os.listdir(mount.path / "d")
    for number in range(20):
        (mount.path / f"d/n{number}").read_bytes()
    assert "delegations" not in events(mount)


def test_without_the_option(serve: Serve, served: Path) -> None:
    mount = serve(served, delegations=0)
    os.listdir(mount.path / "d")
    messages(mount)
    for _ in range(4):
        (mount.path / "d/f").read_bytes()
    assert messages(mount)["open"] == 4


def test_what_a_local_program_writes_is_read_by_the_next_open(serve: Serve, served: Path) -> None:
    mount = serve(served)
    os.listdir(mount.path / "d")
    path = mount.path / "d/f"
    for number in range(5):
        read_again(mount, path) if number == 0 else path.read_bytes()
        began = time.monotonic()
        with (served / "d/f").open("r+b") as file:
            file.write(b"%05d" % number)
        assert time.monotonic() - began < SOON
        assert path.read_bytes()[:5] == b"%05d" % number
    # As if the last change was long ago: it is delegated once more.
    mount.order("quiet")
    read_again(mount, path)
    with pytest.raises(BlockingIOError):
        os.open(served / "d/f", os.O_WRONLY | os.O_NONBLOCK)

    def may_open() -> bool:
        try:
            os.close(os.open(served / "d/f", os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError:
            return False
        return True

    until(may_open)


@pytest.mark.parametrize("how", ["rename", "unlink", "chmod"])
def test_what_the_kernel_does_not_hold_up_is_told(serve: Serve, served: Path, how: str) -> None:
    mount = serve(served)
    mount.order("keep")
    os.listdir(mount.path / "d")
    path = mount.path / "d/f"
    read_again(mount, path)
    if how == "rename":
        (served / "d/new").write_bytes(b"second")
        os.rename(served / "d/new", served / "d/f")
        until(lambda: path.read_bytes() == b"second")
    elif how == "unlink":
        os.unlink(served / "d/f")
        until(lambda: not path.exists())
    else:
        os.chmod(served / "d/f", 0o600)
    until(lambda: not opened(mount, served / "d/f"))


def opened(mount: Served, path: Path) -> int:
    """How often the server has *path*, or what was called so, open."""
    folder = f"/proc/{mount.process.pid}/fd"
    shown = []
    for number in os.listdir(folder):
        try:
            shown.append(os.readlink(f"{folder}/{number}").removesuffix(" (deleted)"))
        except FileNotFoundError:
            pass
    return shown.count(os.fspath(path))


@pytest.mark.parametrize("how", ["unlink", "rename", "write", "truncate", "chmod"])
def test_what_is_changed_from_here_is_not_kept(serve: Serve, served: Path, how: str) -> None:
    mount = serve(served)
    mount.order("keep")
    os.listdir(mount.path / "d")
    path = mount.path / "d/f"
    read_again(mount, path)
    assert opened(mount, served / "d/f")
    if how == "unlink":
        path.unlink()
    elif how == "rename":
        path.rename(mount.path / "d/g")
    elif how == "write":
        path.write_bytes(b"second")
        assert (served / "d/f").read_bytes() == b"second"
    elif how == "truncate":
        os.truncate(path, 3)
        assert (served / "d/f").read_bytes() == b"fir"
    else:
        path.chmod(0o600)
    until(lambda: not opened(mount, served / "d/f"))
    assert "delegations_recalled" not in events(mount)


def test_locks_through_one_open_control_block(serve: Serve, served: Path) -> None:
    """Two open files that share one are two owners, and what is locked through one of them ends with it."""
    mount = serve(served)
    os.listdir(mount.path / "d")
    path = mount.path / "d/f"
    read_again(mount, path)
    with path.open("rb") as one, path.open("rb") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (served / "d/f").open("rb") as local, pytest.raises(BlockingIOError):
            fcntl.flock(local, fcntl.LOCK_EX | fcntl.LOCK_NB)
        one.close()

        def free() -> bool:
            try:
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        until(free)


def test_a_killed_holder_holds_up_nobody(serve: Serve, served: Path) -> None:
    mount = serve(served)
    os.listdir(mount.path / "d")
    read_again(mount, mount.path / "d/f")
    mount.kill()
    opening = threading.Thread(target=lambda: (served / "d/f").write_bytes(b"second"))
    opening.start()
    opening.join(SOON)
    assert not opening.is_alive()
    assert (served / "d/f").read_bytes() == b"second"


def test_git_status(serve: Serve, served: Path) -> None:
    """Of a repository that nothing has changed: it opens the same files each time."""
    folder = served / "repository"
    run = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-C", os.fspath(folder)]
    folder.mkdir()
    for number in range(50):
        (folder / f"f{number}").write_bytes(b"x" * number)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*run, *words], check=True)
    mount = serve(served)
    status = [*mount.inside, "git", "--no-optional-locks", "-C", os.fspath(mount.mountpoint / "repository"), "status", "--short"]

    def costs() -> dict[str, int]:
        for _ in range(4):
            assert subprocess.run(status, check=True, capture_output=True).stdout == b""
        messages(mount)
        subprocess.run(status, check=True)
        return messages(mount)

    sent = while_it_ran(mount, costs)
    print(sent)
    assert sent.get("open", 0) == 0


# ---- locks


def test_locks_of_a_file_that_one_mount_has_alone(serve: Serve, served: Path) -> None:
    mount = serve(served, attr_valid=0, entry_valid=0)
    leased(mount, "d")
    with (mount.path / "d/f").open("r+b") as one, (mount.path / "d/f").open("r+b") as two:
        # Two open control blocks: the server keeps the locks.
        fcntl.lockf(one, fcntl.LOCK_EX)
        fcntl.lockf(one, fcntl.LOCK_UN)
        two.close()
        until(lambda: opened(mount, served / "d/f") == 1)
        messages(mount)
        for _ in range(10):
            fcntl.lockf(one, fcntl.LOCK_EX)
            fcntl.flock(one, fcntl.LOCK_SH)
            fcntl.lockf(one, fcntl.LOCK_UN)
        with (mount.path / "d/f").open("r+b") as three, pytest.raises(BlockingIOError):
            fcntl.flock(three, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Python looks at what it opens.
        assert messages(mount).keys() <= {"stat"}
        assert events(mount)["locks_delegated"] == 1
        fcntl.lockf(one, fcntl.LOCK_EX, 10)
        with (served / "d/f").open("r+b") as local:
            # It could not open the file before the server had the locks.
            with pytest.raises(BlockingIOError):
                fcntl.lockf(local, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)
            with pytest.raises(BlockingIOError):
                fcntl.flock(local, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(local, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
        assert events(mount)["locks_returned"] == 1


BASE = """
import os, sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
def add(count):
    for _ in range(count):
        base.execute("begin immediate")
        base.execute("insert into t values (?)", (os.getpid(),))
        base.execute("commit")
    return count
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Program:
    def __init__(self, before: list[str], path: Path) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-u", "-c", BASE, os.fspath(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        self.tell(what)
        return self.hear()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def programs() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(before: list[str], path: Path) -> Program:
        started.append(Program(before, path))
        return started[-1]

    yield start
    for program in started:
        program.close()


@pytest.fixture
def base(served: Path) -> Path:
    """A database, in a directory of its own."""
    (served / "b").mkdir()
    made = sqlite3.connect(served / "b/base")
    made.execute("create table t (who)")
    made.commit()
    made.close()
    return served / "b/base"


@pytest.mark.parametrize("delegations", [0, 64])
def test_what_a_transaction_costs(serve: Serve, served: Path, base: Path, programs: Callable[..., Program], delegations: int) -> None:
    mount = serve(served, delegations=delegations)
    os.listdir(mount.path / "b")
    mount.order("quiet")
    program = programs(mount.inside, mount.mountpoint / "b/base")

    def transaction() -> dict[str, int]:
        program.ask("add(3)")
        messages(mount)
        assert program.ask("add(1)") == "1"
        return messages(mount)

    sent = while_it_ran(mount, transaction)
    print(sum(sent.values()), sent)
    assert ("lock" in sent) == (not delegations)
    # 34 without.
    assert not delegations or sum(sent.values()) < 30

    def query() -> dict[str, int]:
        program.ask("add(1)")
        messages(mount)
        assert program.ask("base.execute('select count(*) from t').fetchall()[0][0]").isdecimal()
        return messages(mount)

    sent = while_it_ran(mount, query)
    print(sum(sent.values()), sent)
    assert ("lock" in sent) == (not delegations)


def test_a_database_of_programs_here_and_there(serve: Serve, served: Path, base: Path, programs: Callable[..., Program]) -> None:
    mount = serve(served)
    os.listdir(mount.path / "b")
    here = [programs(mount.inside, mount.mountpoint / "b/base") for _ in range(2)]
    assert here[0].ask("add(5)") == "5"
    there = programs([], base)
    count = 5
    for number in (1, 7, 3):
        for program in (*here, there):
            program.tell(f"add({number})")
        for program in (*here, there):
            assert program.hear() == str(number)
        count += 3 * number
    for program in (*here, there):
        assert program.ask("base.execute('select count(*) from t').fetchall()[0][0]") == str(count)
        assert program.ask("base.execute('pragma integrity_check').fetchall()[0][0]") == "ok"
