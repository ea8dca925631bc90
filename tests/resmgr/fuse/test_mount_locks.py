"""Locks of unmodified programs on a real mount: flock(1), Python's fcntl, SQLite. The server keeps them, not the kernel."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from resmgr.testing.fusemount import Served
from tests.resmgr.waiting import until

pytestmark = pytest.mark.priv

Serve = Callable[..., Served]

TRY = """
import fcntl, os, struct, sys
def lock(file, kind, *rest):
    try:
        fcntl.lockf(file, kind, *rest)
        return "got"
    except OSError as error:
        return error.strerror
f = open("f", "r+b")
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@pytest.fixture
def mount(serve: Serve, tmp_path: Path) -> Served:
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "f").write_bytes(bytes(100))
    return serve(directory)


class Program:
    """A program with `f` open that evaluates what it is told. Its answers may come later: `ask` waits, `tell` does not."""

    def __init__(self, mount: Served) -> None:
        self.process = subprocess.Popen(
            [*mount.inside, sys.executable, "-u", "-c", f"import os; os.chdir({str(mount.mountpoint)!r})\n{TRY}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        self.tell(what)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(mount: Served, *command: str) -> subprocess.CompletedProcess[str]:
    script = f'cd {mount.mountpoint} && exec "$@"'
    return subprocess.run([*mount.inside, "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False, timeout=20)


def waiting(mount: Served) -> bool:
    return any(request["operation"] == "SETLKW" for request in cast("list[dict[str, Any]]", mount.order("status")))


def test_two_programs(mount: Served) -> None:
    one, two = Program(mount), Program(mount)
    try:
        assert one.ask("lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)") == "got"
        assert two.ask("lock(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 14)") == "Resource temporarily unavailable"
        assert two.ask("lock(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 15)") == "got"
        test = "struct.unpack('@hhqqi4x', fcntl.fcntl(f, fcntl.F_GETLK, struct.pack('@hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)))"
        assert two.ask(test) == f"(1, 0, 5, 10, {one.process.pid})"
        # Somebody who waits gets it when the other closes another descriptor of the file, as POSIX has it.
        assert one.ask("setattr(sys, 'g', open('f', 'r+b'))") == "None"
        two.tell("lock(f, fcntl.LOCK_EX)")
        until(lambda: waiting(mount))
        assert one.ask("sys.g.close()") == "None"
        assert two.answer() == "got"
        # And at its death.
        one.tell("lock(f, fcntl.LOCK_EX)")
        until(lambda: waiting(mount))
        two.close()
        assert one.answer() == "got"
        assert mount.order("messages") == {}
    finally:
        one.close()
        two.close()


def test_a_deadlock_is_told(mount: Served) -> None:
    one, two = Program(mount), Program(mount)
    try:
        assert one.ask("lock(f, fcntl.LOCK_EX, 1, 0)") == "got"
        assert two.ask("lock(f, fcntl.LOCK_EX, 1, 1)") == "got"
        one.tell("lock(f, fcntl.LOCK_EX, 1, 1)")
        until(lambda: waiting(mount))
        assert two.ask("lock(f, fcntl.LOCK_EX, 1, 0)") == "Resource deadlock avoided"
        assert two.ask("lock(f, fcntl.LOCK_UN, 1, 1)") == "got"
        assert one.answer() == "got"
    finally:
        one.close()
        two.close()


def test_flock_of_the_shell(mount: Served) -> None:
    one = Program(mount)
    try:
        assert one.ask("fcntl.flock(f, fcntl.LOCK_EX)") == "None"
        assert run(mount, "flock", "-n", "f", "true").returncode == 1
        # A signal ends the wait, here the alarm that flock sets itself.
        begin = time.monotonic()
        assert run(mount, "flock", "-w", "0.2", "f", "true").returncode == 1
        assert time.monotonic() - begin < 5
        # A lock of the whole and one of ranges have nothing to do with each other.
        two = Program(mount)
        assert two.ask("lock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "got"
        two.close()
        # A descriptor that was passed on keeps the lock, the last one to close it gives it up.
        assert one.ask("setattr(sys, 'g', os.dup(f.fileno())) or f.close()") == "None"
        assert run(mount, "flock", "-n", "f", "true").returncode == 1
        assert one.ask("os.close(sys.g)") == "None"
        until(lambda: run(mount, "flock", "-n", "f", "true").returncode == 0)
    finally:
        one.close()


def test_open_file_description_locks(mount: Served) -> None:
    one = Program(mount)
    ofd = "fcntl.fcntl(%s, 37, struct.pack('@hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)) and 'got'"
    try:
        assert one.ask(ofd % "f") == "got"
        assert one.ask("setattr(sys, 'g', open('f', 'r+b'))") == "None"
        one.tell("[lock(sys.g, fcntl.LOCK_EX | fcntl.LOCK_NB)]")
        assert one.answer() == "['Resource temporarily unavailable']"
        assert one.ask("f.close()") == "None"
        until(lambda: one.ask("lock(sys.g, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "got")
    finally:
        one.close()


def test_sqlite_of_several_programs_at_once(mount: Served, tmp_path: Path) -> None:
    """Each adds to a number that it has read: without locks, or with pages from before the lock, some are lost."""
    count = """
import sqlite3, sys
database = sqlite3.connect("db", timeout=20, isolation_level=None)
database.execute("create table if not exists t (n)")
database.execute("insert into t select 0 where not exists (select * from t)") if sys.argv[1] == "0" else None
for _ in range(int(sys.argv[1])):
    database.execute("begin immediate")
    (n,) = database.execute("select n from t").fetchone()
    database.execute("update t set n = ?", (n + 1,))
    database.execute("commit")
print(database.execute("select n from t").fetchone()[0])
"""
    assert run(mount, sys.executable, "-c", count, "0").stdout == "0\n"
    command = [*mount.inside, "sh", "-c", f'cd {mount.mountpoint} && exec "$@"', "sh", sys.executable, "-c", count, "8"]
    # One of them does not come through the mount: it is a program of the machine that has the file.
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    programs.append(subprocess.Popen(command[-4:], cwd=tmp_path / "served", stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for program in programs:
        _, said = program.communicate(timeout=30)
        assert said == b""
    assert run(mount, sys.executable, "-c", count, "1").stdout == "25\n"


def test_a_server_without_locks_says_so(serve: Serve) -> None:
    mount = serve()
    mount.order("write", path="f", data="x")
    one = Program(mount)
    try:
        assert one.ask("lock(f, fcntl.LOCK_EX)") == "No locks available"
    finally:
        one.close()
