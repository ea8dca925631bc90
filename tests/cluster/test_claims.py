"""Locks of two nodes' programs in one file, over a restart of its server."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.test_coherence import TOPOLOGY, Program
from tests.cluster.test_delegations import ENDS, signal

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

HARD = TOPOLOGY.replace("[links.lan]", '[links.lan]\n[config.qnet.mount]\noptions = "hard"')
"""Tokens are asked for at once."""
LOCKING = """
import fcntl, json, sys
def lock(start, wait=False):
    fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 10, start)
    return "had it"
def read():
    file.seek(0)
    return file.read()
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except OSError as error:
        print(json.dumps(error.strerror), flush=True)
"""


def program(path: str) -> str:
    return f"file = open({path!r}, 'r+')\n{LOCKING}"


def test_who_is_back_first_does_not_take_what_another_node_had(start_cluster: Start) -> None:
    cluster = start_cluster(HARD)
    cluster.run("s", "sh", "-c", "mkdir -p /tmp/t && echo text >/tmp/t/f")
    argv = "python3", "-c"
    for node in "a", "b":
        cluster.run(node, "qnet", "nodes", "--wait", "s")
    with (
        cluster.running("a", *argv, program("/net/s/tmp/t/f")) as a,
        cluster.running("b", *argv, program("/net/s/tmp/t/f")) as b,
        cluster.running("s", *argv, program("/tmp/t/f")) as s,
    ):
        quick, late, local = Program(a), Program(b), Program(s)
        assert quick.ask("lock(0)") == late.ask("lock(10)") == "had it"
        signal(cluster, "b", "STOP")
        cluster.run("s", "qnet", "restart")
        kit.wait_for(lambda: quick.ask("read()") == "text\n", ENDS)
        quick.send("lock(10)")
        signal(cluster, "b", "CONT")
        assert quick.receive() == os.strerror(errno.EAGAIN)
        kit.wait_for(lambda: late.ask("read()") == "text\n", ENDS)
        # Both have what they had, and a lock that nobody had is free.
        assert local.ask("lock(0)") == local.ask("lock(10)") == os.strerror(errno.EAGAIN)
        assert late.ask("lock(20)") == "had it"
