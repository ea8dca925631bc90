"""The server's file system is full while another node's programs write: each is told by write, fsync, msync or close, nothing that was
answered for is lost, and when there is room again everything goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.meshed import seen, serving

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
TOPOLOGY = serving("a", "s", title="full")
BLOCKS, BLOCK, INODES = 64, 65536, 60
PROGRAM = f"""
import errno, json, mmap, os, subprocess, sys
BLOCKS, BLOCK = {BLOCKS}, {BLOCK}
os.chdir("/net/s/tmp/small")
def block(number):
    return bytes([number % 251 + 1]) * BLOCK
def told(call, *words):
    try:
        call(*words)
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""
def fill(name, flags=0, count=3 * BLOCKS):
    # As much as there is room for; [what write said, what fsync said, what close said, bytes that are there as written, bytes but holes]
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    said = ""
    for number in range(count):
        if said := told(os.write, fd, block(number)):
            break
    synced = told(os.fsync, fd)
    closed = told(os.close, fd)
    with open(name, "rb") as file:
        data = file.read()
    kept = sum(data[number * BLOCK : (number + 1) * BLOCK].count(block(number)[:1]) for number in range(len(data) // BLOCK + 1))
    return [said, synced, closed, kept, len(data) - data.count(0)]
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    with seen(TOPOLOGY) as running:
        size = f"size={BLOCKS * BLOCK},nr_inodes={INODES}"
        running.run("s", "sh", "-c", f"mkdir /tmp/small; mount -t tmpfs -o {size} none /tmp/small")
        yield running


@pytest.fixture(autouse=True)
def _empty(nodes: kit.Cluster) -> None:
    """Each test begins with all the room."""
    nodes.run("s", "sh", "-c", "rm -rf /tmp/small/* /tmp/small/.[!.]*")
    used = "df --output=used /tmp/small | tail -1"
    kit.wait_for(lambda: nodes.run("s", "sh", "-c", used).stdout.split() == ["0"], 15.0, "all removed files are let go")


def on_a(nodes: kit.Cluster, text: str) -> Any:
    """What the last line of the program says, in JSON."""
    return json.loads(nodes.run("a", "python3", "-c", PROGRAM + text).stdout.splitlines()[-1])


def test_writers_are_told_and_room_that_was_made_is_there(nodes: kit.Cluster) -> None:
    rounds = on_a(
        nodes,
        """
rounds = []
for flags in (0, 0, os.O_APPEND, os.O_SYNC, 0):
    rounds.append(fill("file", flags))
    os.unlink("file")
print(json.dumps(rounds))
""",
    )
    for said, synced, closed, kept, there in rounds:
        # One of them says it, whoever comes first. What is there is what was written, and all the room; but writes behind overtake each
        # other, so one that failed may be a hole.
        assert "ENOSPC" in (said, synced, closed)
        assert {said, synced, closed} <= {"", "ENOSPC"}
        assert kept == there == BLOCKS * BLOCK


def test_close_tells_who_does_not_sync(nodes: kit.Cluster) -> None:
    told = on_a(
        nodes,
        """
fd = os.open("file", os.O_WRONLY | os.O_CREAT, 0o644)
said = [told(os.write, fd, block(number)) for number in range(BLOCKS + 4)]
print(json.dumps([*said, told(os.close, fd)]))
""",
    )
    assert "ENOSPC" in told
    assert set(told) == {"", "ENOSPC"}


def test_mappings_and_reserved_room(nodes: kit.Cluster) -> None:
    """A store into a hole for which there is no room: on tmpfs itself SIGBUS, here an error of msync, and of fsync."""
    told = on_a(
        nodes,
        """
fill("file", count=BLOCKS - 2)
fd = os.open("mapped", os.O_RDWR | os.O_CREAT, 0o644)
answers = {"reserve": told(os.posix_fallocate, fd, 0, 4 * BLOCK)}
os.ftruncate(fd, 16 * BLOCK)
fill("rest")
with mmap.mmap(fd, 16 * BLOCK) as mapping:
    mapping[8 * BLOCK : 8 * BLOCK + 5] = b"hello"
    answers["msync"] = told(mapping.flush)
    answers["fsync"] = told(os.fsync, fd)
    os.unlink("rest")
    mapping[9 * BLOCK : 9 * BLOCK + 5] = b"again"
    answers["msync again"] = told(mapping.flush)
os.close(fd)
with open("mapped", "rb") as file:
    answers["there"] = file.read()[9 * BLOCK : 9 * BLOCK + 5].decode()
print(json.dumps(answers))
""",
    )
    assert told["reserve"] == told["msync"] == "ENOSPC"
    assert told["fsync"] in ("", "ENOSPC")
    assert told["msync again"] == ""
    assert told["there"] == "again"


def test_no_more_files(nodes: kit.Cluster) -> None:
    told = on_a(
        nodes,
        """
said = []
for number in range(80):
    said.append(told(open, f"f{number}", "x"))
made = said.count("")
answers = [told(os.mkdir, "d"), told(os.symlink, "x", "s"), told(open, "f0", "a"), len(os.listdir(".")) == made]
os.unlink("f0")
answers.append(told(os.mkdir, "d"))
print(json.dumps([set(said) == {"", "ENOSPC"}, *answers]))
""",
    )
    assert told == [True, "ENOSPC", "ENOSPC", "", True, ""]


def test_databases_and_repositories_stay_whole(nodes: kit.Cluster) -> None:
    """SQLite says that it is full, and has what it committed; git's commit fails, and the repository has what was committed before."""
    told = on_a(
        nodes,
        """
import sqlite3
fill("rest", count=BLOCKS // 2)
base = sqlite3.connect("base", isolation_level=None)
base.execute("create table entries (number integer primary key, text text)")
def insert():
    done = []
    for number in range(1000):
        try:
            base.execute("insert into entries values (?, ?)", (None, "x" * 20000))
        except sqlite3.OperationalError as error:
            return done, str(error)
        done.append(number)
done, said = insert()
answers = {"said": said, "some": len(done) > 20, "whole": base.execute("pragma integrity_check").fetchone()[0]}
answers["all"] = base.execute("select count(*) from entries").fetchone()[0] == len(done)
os.unlink("rest")
base.execute("delete from entries where number > 10")
answers["after"] = base.execute("pragma integrity_check").fetchone()[0]
base.close()
os.unlink("base")

environment = {**os.environ, "HOME": "/nowhere", "GIT_CONFIG_NOSYSTEM": "1"}
for who in ("AUTHOR", "COMMITTER"):
    environment |= {f"GIT_{who}_NAME": "a", f"GIT_{who}_EMAIL": "a@example.org"}
def git(*words):
    return subprocess.run(["git", "-c", "safe.directory=*", *words], cwd="tree", env=environment, capture_output=True, text=True)
os.mkdir("tree")
git("init", "-q", "--template=")
for number in range(3):
    with open("tree/file", "w") as file:
        file.write("line %d\\n" % number)
    git("add", ".")
    assert git("commit", "-q", "-m", str(number)).returncode == 0
with open("tree/large", "wb") as file:
    file.write(os.urandom(30 * BLOCK))
fill("rest", count=2 * BLOCKS)
failed = git("add", "."), git("commit", "-q", "-m", "too much")
answers["git"] = [one.returncode != 0 for one in failed]
os.unlink("rest")
answers["again"] = [git("add", ".").returncode, git("commit", "-q", "-m", "enough").returncode]
answers["fsck"] = git("fsck", "--strict").returncode
answers["commits"] = len(git("log", "--format=%s").stdout.split())
print(json.dumps(answers))
""",
    )
    # The one if write tells it, the other if fsync does.
    assert told["said"] in ("database or disk is full", "disk I/O error")
    assert (told["some"], told["all"], told["whole"], told["after"]) == (True, True, "ok", "ok")
    assert told["git"] == [True, True]
    assert (told["again"], told["fsck"], told["commits"]) == ([0, 0], 0, 4)
