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
