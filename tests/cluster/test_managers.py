"""Resource managers of third parties on whole nodes: the examples, used from the other node by programs that know nothing of it; locks and
waiting across the link; what happens when managers, clients and nodes die."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qnetpy.testing import cluster as kit

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
EXAMPLES = Path(__file__).parents[2] / "examples"

TOPOLOGY = """
users = [{ name = "alice", uid = 4001 }]
[links.lan]
[config.access.spawn]
nodes = ["*"]
[[config.access.users]]
mapping = "identity"
root = "root"
[[config.access.exports]]
path = "/"
verbs = ["read"]
[[config.access.exports]]
path = "/dev"
verbs = ["read", "write"]
[[config.access.exports]]
path = "/tmp"
verbs = ["read", "write"]
[[config.access.managers]]
path = "/dev/led"
users = ["alice"]
[nodes.n1]
[nodes.n2]
"""

WAITER = """
import fcntl, os, select, struct, sys, time
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


class Program:
    """Python on a node that evaluates lines; `tell` does not wait."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self, what: str) -> str:
        self.tell(what)
        return self.answer()


@contextmanager
def program(cluster: kit.Cluster, node: str) -> Iterator[Program]:
    with cluster.running(node, sys.executable, "-c", WAITER) as process:
        yield Program(process)


def served(cluster: kit.Cluster, node: str, path: str) -> None:
    """Wait until *path* is attached on *node*."""
    cluster.run(node, "sh", "-c", f"until qnet ls -m --json | grep -q '\"{path}\"'; do sleep 0.02; done", seconds=20)


@contextmanager
def serving() -> Iterator[kit.Cluster]:
    """Two nodes, with all examples on n2."""
    with kit.cluster(TOPOLOGY) as cluster, ExitStack() as stack:
        for name in ("keyvalue", "log", "serial", "stats"):
            stack.enter_context(cluster.running("n2", sys.executable, str(EXAMPLES / f"{name}.py")))
        for path in ("/dev/kv", "/dev/log.d", "/dev/ser2", "/dev/stats"):
            served(cluster, "n2", path)
        cluster.run("n1", "qnet", "nodes", "--wait", "n2")
        yield cluster


@pytest.fixture
def running(_rights: None) -> Iterator[kit.Cluster]:
    """For a test that ends one of them."""
    with serving() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def lasting(_rights: None) -> Iterator[kit.Cluster]:
    with serving() as cluster:
        yield cluster


def sh(cluster: kit.Cluster, script: str, node: str = "n1", user: str | None = None) -> str:
    return cluster.run(node, "sh", "-c", script, user=user).stdout


def test_the_examples_from_the_other_node(lasting: kit.Cluster) -> None:
    cluster = lasting
    # A store of keys and values.
    assert sh(cluster, "cd /net/n2/dev/kv; echo 5 >x; printf abc >y; cat x y; ls; rm x; ls") == "5\nabcx\ny\ny\n"
    assert sh(cluster, "cat /net/n2/dev/kv/y", "n2") == "abc"
    alices = "cd /net/n2/dev/kv; echo mine >z; rm -f y 2>&1 || true; stat -c %U z"
    assert sh(cluster, alices, user="alice").splitlines() == ["rm: cannot remove 'y': Permission denied", "alice"]
    assert sh(cluster, "ls /net/n2/dev/kv") == "y\nz\n"
    # A log, and somebody who waits for its next line.
    sh(cluster, "echo first >>/net/n2/dev/log.d; echo second >>/net/n2/dev/log.d", "n2")
    sh(cluster, "echo third >>/net/n2/dev/log.d")
    assert sh(cluster, "cat /net/n2/dev/log.d; dd if=/net/n2/dev/log.d bs=6 count=1 2>/dev/null") == "first\nsecond\nthird\nfirst\n"
    with program(cluster, "n1") as reader:
        assert reader.ask("globals().update(f=open('/net/n2/dev/log.d', 'rb')) or f.read()") == r"b'first\nsecond\nthird\n'"
        assert reader.ask("select.select([f], [], [], 0)[0] == []") == "True"
        reader.tell("len(select.select([f], [], [], 20)[0])")
        sh(cluster, "echo fourth >>/net/n2/dev/log.d", "n2")
        assert reader.answer() == "1"
        assert reader.ask("f.read()") == r"b'fourth\n'"
    with cluster.running("n1", "tail", "-f", "-n", "1", "/net/n2/dev/log.d") as tail:
        assert tail.stdout is not None
        assert tail.stdout.readline() == b"fourth\n"
        sh(cluster, "echo fifth >>/net/n2/dev/log.d")
        assert tail.stdout.readline() == b"fifth\n"
    # Two ports with a cable between them: one program on each node.
    with program(cluster, "n1") as here, program(cluster, "n2") as there:
        for one, port in ((here, "ser1"), (there, "ser2")):
            assert one.ask(f"globals().update(fd=os.open('/net/n2/dev/{port}', os.O_RDWR))") == "None"
        there.tell("os.read(fd, 100)")
        assert here.ask("os.write(fd, b'hello')") == "5"
        assert there.answer() == "b'hello'"
        here.tell("select.select([fd], [], [], 20)[0] == [fd]")
        assert there.ask("os.write(fd, bytes(9000))") == "4096"
        assert here.answer() == "True"
        assert there.ask("os.set_blocking(fd, False) or os.write(fd, b'x')") == "Resource temporarily unavailable"
        assert here.ask("len(os.read(fd, 9000))") == "4096"
        assert there.ask("os.read(fd, 1)") == "Resource temporarily unavailable"
        assert here.ask("fcntl.ioctl(fd, 0x40047302, struct.pack('I', 115200))") == r"b'\x00\xc2\x01\x00'"
        assert here.ask("struct.unpack('I', fcntl.ioctl(fd, 0x80047301, bytes(4)))") == "(115200,)"
        assert here.ask("struct.unpack('QQ', fcntl.ioctl(fd, 0x80107303, bytes(16)))") == "(4096, 5)"
        assert here.ask("fcntl.ioctl(fd, 0x40047302, struct.pack('I', 1))") == "Invalid argument"
        assert here.ask("fcntl.ioctl(fd, 0x80047377, bytes(4))") == "Inappropriate ioctl for device"
    # Live statistics.
    assert sh(cluster, "cat /net/n2/dev/stats/processors") == sh(cluster, "nproc", "n2")
    assert len(sh(cluster, "grep -r . /net/n2/dev/stats/memory").splitlines()) == 2


def test_who_serves_what_and_who_may(lasting: kit.Cluster) -> None:
    cluster = lasting
    told = sh(cluster, "qnet ls -m n2")
    assert "/dev/kv" in told
    assert "one name" in told
    facts = json.loads(sh(cluster, "qnet ls -m --json", "n2"))
    found = {row["path"]: row for row in facts["managers"]}
    assert found["/dev/ser1"]["pid"] == found["/dev/ser2"]["pid"] != 1
    assert (found["/dev/kv"]["uid"], found["/dev/kv"]["how"], found["/net"]["pid"]) == (0, "", 1)
    stats = str(EXAMPLES / "stats.py")
    refused = cluster.run("n2", sys.executable, stats, "/dev/mine", user="alice", check=False)
    assert refused.returncode != 0
    assert "/dev/mine: this user may not attach a manager there" in refused.stderr
    with ExitStack() as stack:
        for path in ("/dev/user/alice/stats", "/dev/led/stats"):
            stack.enter_context(cluster.running("n2", sys.executable, stats, path, user="alice"))
            served(cluster, "n2", path)
            assert float(sh(cluster, f"cat /net/n2{path}/uptime")) > 0
        assert json.loads(sh(cluster, "qnet ls -m n2 --json"))["managers"]
        sh(cluster, "cat /net/n2/dev/user/alice/stats/load; ls /net/n2/dev/user | grep alice")
    sh(cluster, "while qnet ls -m n2 | grep -q alice; do sleep 0.02; done")
    # Under what the disk has: that comes first.
    sh(cluster, "mkdir -p /tmp/u; echo disk >/tmp/u/load", "n2")
    under = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import stats; stats.serve('/tmp/u', stats.STATISTICS, flags=stats.AFTER)"
    with cluster.running("n2", sys.executable, "-c", under.replace("stats.AFTER", "__import__('qnetpy.manage').manage.Attach.AFTER")):
        served(cluster, "n2", "/tmp/u")
        expected = "disk\n" + sh(cluster, "nproc", "n2") + "load\nmemory\nprocessors\nuptime\n"
        assert sh(cluster, "cd /net/n2/tmp/u; cat load processors; ls") == expected


def test_locks_and_waiting_across_the_link_and_deaths(running: kit.Cluster) -> None:
    cluster = running
    sh(cluster, "dd if=/dev/zero of=/tmp/f bs=100 count=1 2>/dev/null", "n2")
    with program(cluster, "n1") as far, program(cluster, "n2") as near, program(cluster, "n1") as third:
        far.ask("globals().update(f=open('/net/n2/tmp/f', 'r+b'))")
        third.ask("globals().update(f=open('/net/n2/tmp/f', 'r+b'))")
        near.ask("globals().update(f=open('/tmp/f', 'r+b'))")
        # A program of the machine itself, and one of another node.
        assert far.ask("fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)") == "None"
        assert near.ask("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 14)") == "Resource temporarily unavailable"
        assert near.ask("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 15)") == "None"
        assert far.ask("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 15)") == "Resource temporarily unavailable"
        assert third.ask("fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)") == "None"
        third.tell("fcntl.lockf(f, fcntl.LOCK_EX, 1, 5)")
        assert far.ask("time.sleep(0.1) or fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)") == "Resource deadlock avoided"
        # What is written under a lock is what the next holder reads.
        assert far.ask("f.seek(0) or f.write(b'new') and f.flush() or fcntl.lockf(f, fcntl.LOCK_UN)") == "None"
        assert third.answer() == "None"
        assert third.ask("f.read(3)") == "b'new'"
        assert cluster.run("n1", "flock", "-n", "/net/n2/tmp/f", "echo", "got").stdout == "got\n"
    with program(cluster, "n1") as far, program(cluster, "n1") as third, program(cluster, "n2") as near:
        far.ask("globals().update(f=open('/net/n2/tmp/f', 'r+b'), p=os.open('/net/n2/dev/ser1', os.O_RDWR), poll=select.poll())")
        near.ask("globals().update(f=open('/tmp/f', 'r+b'))")
        assert far.ask("fcntl.flock(f, fcntl.LOCK_EX)") == "None"
        assert near.ask("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "Resource temporarily unavailable"
        assert far.ask("poll.register(p, select.POLLIN)") == "None"
        far.tell("poll.poll(20000) == [(p, select.POLLERR)]")
        third.ask("os.mkfifo('/net/n2/tmp/fifo') or globals().update(p=os.open('/net/n2/tmp/fifo', os.O_RDWR))")
        third.tell("os.read(p, 1)")
        # The node of the manager goes: who waits there is woken.
        cluster.kill("n2")
        assert far.answer() == "True"
        assert far.ask("os.read(p, 1)") == "Host is down"
        assert third.answer() == "Host is down", "in a read of a FIFO"


def test_the_node_of_a_client_that_holds_a_lock_dies(running: kit.Cluster) -> None:
    cluster = running
    sh(cluster, "echo x >/tmp/g", "n2")
    with program(cluster, "n1") as far:
        far.ask("globals().update(f=open('/net/n2/tmp/g', 'r+b'), p=os.open('/net/n2/dev/ser1', os.O_RDWR))")
        assert far.ask("fcntl.flock(f, fcntl.LOCK_EX)") == "None"
        assert cluster.run("n2", "flock", "-n", "/tmp/g", "true", check=False).returncode == 1
        far.tell("os.read(p, 1)")
        cluster.kill("n1")
    assert cluster.run("n2", "flock", "-w", "20", "/tmp/g", "echo", "free").stdout == "free\n"
    assert sh(cluster, "echo hello >/net/n2/dev/ser2; head -c 5 /net/n2/dev/ser1", "n2") == "hello"
