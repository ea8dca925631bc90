"""Programs of a client that stand in directories of another node, or have them open, while its daemon is away and they are moved; and a
file system of that node that is unmounted when no program of the client needs it any more."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import attrs
import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import wait_for
from resmgr.fuse.idle import PERIOD
from tests.cluster.asked import Program, asked
from tests.cluster.meshed import seen, serving
from tests.cluster.test_delegations import signal

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
TOPOLOGY = serving("a", "s", title="directories", path="/tmp/shared")
KNOWS = """
import os
fds = {}
def put(name, text):
    with open(name, "w") as file:
        return file.write(text)
def get(name, fd=None):
    with open(name, opener=lambda name, flags: os.open(name, flags, dir_fd=fd)) as file:
        return file.read()
def opened(name):
    fds[name] = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
"""
LET_GO = 10.0
"""Seconds after which the server has nothing open that nobody uses (docs/protocol/delegation.md)."""
SLACK = 5.0
"""A loaded machine adds to it."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    with seen(TOPOLOGY) as running:
        yield running


def standing(nodes: kit.Cluster, place: str) -> AbstractContextManager[Program]:
    return asked(nodes, "a", place, KNOWS)


def count(nodes: kit.Cluster, name: str) -> int:
    return sum(mount["events"].get(name, 0) for mount in kit.facts(nodes, "a")["mounts"])


@attrs.define
class Settled:
    """Whether no token has come for as long as one may be waited for."""

    nodes: kit.Cluster
    seen: int = -1
    since: float = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if (seen := count(self.nodes, "identified")) != self.seen:
            self.seen, self.since = seen, now
        return now - self.since > 2 * PERIOD


def away(nodes: kit.Cluster, how: str, script: str) -> None:
    """Carry out *script* on s while its daemon is not there."""
    if how == "kill":
        signal(nodes, "s", "KILL")
    else:
        nodes.run("s", "qnet", "down")
    nodes.run("s", "sh", "-ec", script)
    nodes.run("s", "qnet", "up")
    nodes.run("a", "qnet", "nodes", "--wait", "s")


@pytest.mark.parametrize("how", ["kill", "down"])
def test_where_programs_stand_and_what_they_have_open(nodes: kit.Cluster, how: str) -> None:
    top, here = f"/tmp/shared/{how}", f"/net/s/tmp/shared/{how}"
    names = ("below", "moved", "removed", "anew", "out")
    nodes.run("s", "sh", "-ec", "".join(f"mkdir -p {top}/w/{name}/deep; echo {name} >{top}/w/{name}/file;" for name in names))
    with (
        standing(nodes, f"{here}/w/below/deep") as deep,
        standing(nodes, f"{here}/w/below") as below,
        standing(nodes, f"{here}/w/moved") as moved,
        standing(nodes, f"{here}/w/removed") as removed,
        standing(nodes, f"{here}/w/anew") as anew,
        standing(nodes, f"{here}/w/out") as out,
    ):
        below.ask(f"opened('{here}/w/moved')")
        assert below.ask(f"get('file', fds['{here}/w/moved'])") == "moved\n"
        for program in (moved, removed, anew, out):
            program.ask("opened('.')")
            program.ask("os.listdir('.')")
        wait_for(Settled(nodes), 3 * LET_GO, "they have their tokens")
        change = f"""
            cd {top}; mv w/moved moved; mv w v; rm -r v/removed v/anew; mkdir -p v/anew w/below/deep; echo other >v/anew/file
            echo other >w/below/file; mv v/out /tmp/{how}-out
        """
        away(nodes, how, change)
        assert below.ask("get('file')") == "below\n"
        assert deep.ask("get('../file')") == "below\n"
        assert deep.ask("put('new', 'text')") == 4
        assert below.ask(f"get('file', fds['{here}/w/moved'])") == "moved\n"
        assert below.ask(f"(os.fchdir(fds['{here}/w/moved']), get('file'))[1]") == "moved\n"
        assert moved.ask("sorted(os.listdir('.'))") == ["deep", "file"]
        assert moved.ask("sorted(os.listdir(fds['.']))") == ["deep", "file"]
        assert moved.ask("(os.mkdir('made'), put('made/file', 'text'))[1]") == 4
        assert nodes.run("s", "cat", f"{top}/v/below/deep/new", f"{top}/moved/made/file").stdout == "texttext"
        for program in (removed, anew, out):
            assert program.error("get('file')") == errno.ESTALE
            assert program.error("put('file', 'text')") == errno.ESTALE
            assert program.error("os.listdir(fds['.'])") == errno.ESTALE
        # By a path everybody finds what is there now.
        assert (
            nodes.run("a", "cat", f"{here}/v/anew/file", f"{here}/w/below/file", f"{here}/v/below/file").stdout == "other\nother\nbelow\n"
        )


@pytest.fixture
def small(nodes: kit.Cluster) -> Iterator[str]:
    """A file system of its own on s, below what a has looked at; the path on s."""
    made = "mkdir -p /tmp/shared/small; cd /tmp/shared; mount -t tmpfs none small; mkdir -p small/d/e/f; echo text >small/d/e/file"
    nodes.run("s", "sh", "-ec", made)
    wait_for(lambda: nodes.run("a", "test", "-e", "/net/s/tmp/shared/small/d", check=False).returncode == 0, 5.0, "a sees it")
    yield "/tmp/shared/small"
    nodes.run("s", "umount", "-l", "/tmp/shared/small", check=False)


def unmounted(nodes: kit.Cluster, path: str) -> bool:
    return nodes.run("s", "umount", path, check=False).returncode == 0


def test_a_file_system_that_no_program_uses_is_unmounted(nodes: kit.Cluster, small: str) -> None:
    nodes.run("a", "sh", "-ec", f"ls -lR /net/s{small}; find /net/s{small}; cat /net/s{small}/d/e/file /net/s{small}/d/e/file")
    assert not unmounted(nodes, small), "what was used a moment ago is kept"
    wait_for(lambda: unmounted(nodes, small), LET_GO + SLACK, "unmounted")
    assert nodes.run("a", "ls", f"/net/s{small}").stdout == ""


@pytest.mark.parametrize("how", ["stands", "open"])
def test_one_that_a_program_uses_is_busy_as_at_home(nodes: kit.Cluster, small: str, how: str) -> None:
    place = f"/net/s{small}/d/e"
    with standing(nodes, place if how == "stands" else "/") as program:
        if how == "stands":
            assert program.ask("get('file')") == "text\n"
        else:
            program.ask(f"opened('{place}')")
        other = "/tmp/shared/other"
        nodes.run("s", "sh", "-ec", f"mkdir -p {other}; mount -t tmpfs none {other}; mkdir {other}/d")
        # Used by nobody, and later.
        nodes.run("a", "ls", f"/net/s{other}/d")
        wait_for(lambda: unmounted(nodes, other), LET_GO + SLACK, "unmounted")
        assert not unmounted(nodes, small)
        program.ask("os.chdir('/')" if how == "stands" else f"os.close(fds['{place}'])")
        wait_for(lambda: unmounted(nodes, small), 2 * LET_GO + SLACK, "unmounted")
