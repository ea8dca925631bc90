"""A file system that does not answer, mounted somewhere on a node, is the trouble of who looks at it, and of nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

STUCK = """
import ctypes, os, sys
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
call = ctypes.CDLL(None, use_errno=True).mount
assert call(b"stuck", os.fsencode(sys.argv[1]), b"fuse.stuck", ctypes.c_ulong(0), options) == 0, os.strerror(ctypes.get_errno())
print("mounted", flush=True)
sys.stdin.read()
"""


def test_a_mount_that_does_not_answer(start_cluster: Start) -> None:
    cluster = start_cluster("[nodes.a]\n[nodes.b]\n")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    cluster.run("b", "mkdir", "-p", "/tmp/disks/stuck", "/tmp/disks/good")
    with cluster.running("b", "python3", "-c", STUCK, "/tmp/disks/stuck") as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        assert cluster.run("a", "timeout", "5", "ls", "/net/b/tmp/disks").stdout == "good\nstuck\n"
        waiting = [
            cluster.run("a", "timeout", "1", *command.split(), check=False).returncode
            for command in ("ls -l /net/b/tmp/disks/", "stat /net/b/tmp/disks/stuck", "cat /net/b/tmp/disks/stuck/file")
        ]
        assert waiting == [124, 124, 124]
        assert cluster.run("a", "timeout", "5", "cat", "/net/b/etc/hostname").stdout == "b\n"
        assert cluster.run("a", "timeout", "5", "ls", "-ld", "/net/b/tmp/disks/good").returncode == 0
        assert " b     up" in " " + cluster.run("a", "qnet", "nodes").stdout.splitlines()[-1]
        assert cluster.run("b", "timeout", "5", "qnet", "status").returncode == 0


HOLD = """
import ctypes, os, sys
pid = int(sys.argv[1])
call = ctypes.CDLL(None, use_errno=True).syscall
pidfd = os.pidfd_open(pid)
held = [
    call(438, pidfd, int(fd), 0)
    for fd in os.listdir(f"/proc/{pid}/fd")
    if os.path.islink(f"/proc/{pid}/fd/{fd}") and os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse"
]
os.kill(pid, 9)
print(len(held), flush=True)
sys.stdin.read()
"""
"""Keeps a daemon's /dev/fuse as the kernel does when it cannot let a killed thread go, and kills the daemon."""


def test_a_killed_daemon_whose_connection_is_not_ended(start_cluster: Start) -> None:
    cluster = start_cluster("[nodes.a]\n[nodes.b]\n")
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    pid = cluster.run("a", "sh", "-c", "cat /run/qnet/lock").stdout.strip()
    with cluster.running("a", "python3", "-c", HOLD, pid) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        # What comes while the daemon's processes end, they refuse.
        stat = "timeout", "0.5", "stat", "/net/b/etc"
        kit.wait_for(lambda: cluster.run("a", *stat, check=False).returncode == 124, 10.0, "nobody answers")
        cluster.run("a", "timeout", "20", "qnet", "up")
        cluster.run("a", "qnet", "nodes", "--wait", "b")
        assert cluster.run("a", "timeout", "5", "cat", "/net/b/etc/hostname").stdout == "b\n"
        assert cluster.run("a", "grep", "-c", " /net ", "/proc/mounts").stdout == "1\n"
