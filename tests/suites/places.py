"""Where a suite runs: /net of a cluster of two machines, sshfs between the same two, one process that serves a mount, or this machine.

A place is a function that runs a command in the working directory of the suite and returns what came of it. On a cluster the commands are
programs of node a, and the files are node b's, in its memory.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from bench import peers
from qnetpy.testing import cluster as kit
from resmgr.testing.fusemount import Served

TOPOLOGY = """
title = "suites"
users = [{ name = "alice", uid = 4001 }]
[[config.access.users]]
mapping = "identity"
root = "root"
[[config.access.exports]]
path = "/"
verbs = ["read", "write"]
setuid = true
[nodes.a]
[nodes.b]
"""
ACCOUNTS = """
for number in 65531 65532 65533 65535; do
    echo "suite$number:x:$number:$number::/:/bin/sh" >> /etc/passwd
    case $number in 65532) members=nobody,suite65533 ;; 65535) members= ;; *) members=nobody ;; esac
    echo "suite$number:x:$number:$members" >> /etc/group
done
"""
"""Suites act as numbers that no account has. Files of other nodes are shared among accounts (docs/howto/share-files.md): these are they."""
FOLDER = "/tmp/suite"
MOUNT = "/tmp/suite-mount"
SECONDS = 1800.0
"""How long a command may take."""

Done = subprocess.CompletedProcess[str]


@attrs.frozen
class Place:
    """*run* takes a command; *far* runs one on the machine whose files they are, in the same directory there."""

    run: Callable[[Sequence[str]], Done]
    far: Callable[[Sequence[str]], Done]


def inside(directory: str, command: Sequence[str]) -> list[str]:
    return ["sh", "-c", 'cd "$0" && exec "$@"', directory, *command]


@contextmanager
def one_process(permissions: str = "server", devices: bool = False) -> Iterator[Place]:
    """A mount of a temporary directory that one process serves."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        for folder in ("mnt", "served"):
            (top / folder).mkdir()
        served = Served(top / "mnt", {"permissions": permissions, "devices_as_files": not devices}, top / "served")

        def run(command: Sequence[str]) -> Done:
            return _here([*served.inside, *inside(str(top / "mnt"), command)])

        try:
            yield Place(run, lambda command: _here(inside(str(top / "served"), command)))
        finally:
            served.close()


@contextmanager
def this_machine() -> Iterator[Place]:
    """The file system of a temporary directory."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Place(lambda command: _here(inside(name, command)), lambda command: _here(inside(name, command)))


def _here(command: Sequence[str]) -> Done:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)


@contextmanager
def two_machines(needed: Sequence[Path] = (), options: str = "") -> Iterator[Place]:
    """/net/b/tmp/suite on a, or with *options* a mount of its own of that directory; *needed* is seen on both."""
    with _cluster(needed) as cluster:
        cluster.run("a", "qnet", "nodes", "--wait", "b")
        point = f"/net/b{FOLDER}"
        if options:
            point = MOUNT
            cluster.run("a", "mkdir", point)
            cluster.run("a", "qnet", "mount", "-o", options, f"b:{FOLDER}", point)
        yield _place(cluster, point)


@contextmanager
def over_sshfs(needed: Sequence[Path] = ()) -> Iterator[Place]:
    """The same directory by sshfs, as root there, for all users here."""
    options = "allow_other,default_permissions"
    with (
        _cluster(needed) as cluster,
        peers.sshd(cluster, "a", "b"),
        peers.sshfs(cluster, "a", cluster.address("b"), FOLDER, MOUNT, None, options),
    ):
        yield _place(cluster, MOUNT)


@contextmanager
def _cluster(needed: Sequence[Path]) -> Iterator[kit.Cluster]:
    with kit.cluster(TOPOLOGY, needed) as cluster:
        for node in cluster.nodes:
            cluster.run(node, "sh", "-c", ACCOUNTS)
        cluster.run("b", "install", "-d", "-m", "755", FOLDER)
        yield cluster


def _place(cluster: kit.Cluster, point: str) -> Place:
    def on(node: str, directory: str) -> Callable[[Sequence[str]], Done]:
        return lambda command: cluster.run(node, *inside(directory, command), check=False, seconds=SECONDS)

    return Place(on("a", point), on("b", FOLDER))
