"""`qnet restart` on the node whose programs use /net: they go on with what they have open."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.meshed import seen, serving

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
TOPOLOGY = serving("a", "b", title="restart", path="/")
PROGRAM = """
import fcntl, json, os, sys, time
os.makedirs("/net/b/tmp/work/deep", exist_ok=True)
os.chdir("/net/b/tmp/work/deep")
for number in range(3000):
    open("/net/b/tmp/work/%d" % number, "w").close() if number < 40 else None
fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, b"begin")
fcntl.lockf(fd, fcntl.LOCK_EX, 5, 0)
log = open("log", "ab", buffering=0)
listing = os.scandir("/net/b/tmp/work")
first = next(listing).name
gone = open("gone", "w+b", buffering=0)
os.unlink("gone")
print("ready", flush=True)
errors, slowest, count = [], 0.0, 0
while True:
    began = time.monotonic()
    try:
        os.pwrite(fd, b"%08d" % count, 8)
        assert os.pread(fd, 8, 8) == b"%08d" % count
        os.stat("file")
        log.write(b"%08d" % count)
        count += 1
    except OSError as error:
        errors.append([error.errno, str(error)])
    slowest = max(slowest, time.monotonic() - began)
    if os.path.exists("/tmp/enough"):
        break
try:
    gone.read()
    stale = 0
except OSError as error:
    stale = error.errno
said = {"errors": errors, "slowest": slowest, "count": count, "cwd": os.listdir("."), "stale": stale}
said["listing"] = sorted([first, *(entry.name for entry in listing)]) == sorted(os.listdir(".."))
os.fsync(fd)
os.close(fd)
print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[kit.Cluster]:
    """a and b, for all tests after which a is up with a mount at /net as before."""
    with seen(TOPOLOGY) as running:
        yield running


def test_programs_go_on_over_a_restart_of_their_own_daemon(nodes: kit.Cluster) -> None:
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    with nodes.running("a", sys.executable, "-c", PROGRAM) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        # Its lock is held again.
        locked = "import fcntl; fcntl.lockf(open('/tmp/work/deep/file', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        for _ in range(2):
            told = json.loads(nodes.run("a", "qnet", "restart", "--json").stdout)
            assert told["mounts"] == ["/net"]
            assert nodes.run("a", "grep", "-c", " /net ", "/proc/mounts").stdout == "1\n"
            nodes.run("a", "timeout", "20", "cat", "/net/b/etc/hostname")
            kit.wait_for(lambda: nodes.run("b", sys.executable, "-c", locked, check=False).returncode == 1, 5.0, "locked again")
        nodes.run("a", "touch", "/tmp/enough")
        said = json.loads(process.stdout.readline())
    assert said["errors"] == []
    assert said["count"] > 10
    assert said["listing"]
    assert sorted(said["cwd"]) == ["file", "log"]
    assert said["stale"] == 116
    assert said["slowest"] < 15.0
    # The kernel has given back what the program had open.
    assert nodes.run("a", "timeout", "5", "cat", "/net/b/etc/hostname").stdout == "b\n"
    log = nodes.run("b", "cat", "/tmp/work/deep/log").stdout
    assert log == "".join(f"{number:08d}" for number in range(said["count"]))


HOLDER = """
import fcntl, sys
file = open("/net/b/tmp/lock", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
fcntl.lockf(file, fcntl.LOCK_UN)
"""
WAITER = """
import fcntl
file = open("/net/b/tmp/lock", "w")
print("open", flush=True)
fcntl.lockf(file, fcntl.LOCK_EX)
print("got it", flush=True)
"""


def waits(cluster: kit.Cluster) -> bool:
    told = json.loads(cluster.run("a", "qnet", "top", "--once", "--json").stdout)
    return any("lock" in one["operation"].lower() or "setlk" in one["operation"].lower() for one in told["requests"])


def test_who_waits_for_a_lock_waits_on(nodes: kit.Cluster) -> None:
    """The kernel sends the request again."""
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    with nodes.running("a", sys.executable, "-c", HOLDER) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"locked\n"
        with nodes.running("a", sys.executable, "-c", WAITER) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline() == b"open\n"
            kit.wait_for(lambda: waits(nodes), 20.0, "waits")
            nodes.run("a", "qnet", "restart")
            nodes.run("a", "qnet", "nodes", "--wait", "b")
            kit.wait_for(lambda: waits(nodes), 30.0, "waits again")
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            assert waiter.stdout.readline() == b"got it\n"


def test_a_restart_that_fails_leaves_nothing_behind(nodes: kit.Cluster) -> None:
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    refused = nodes.run("a", "qnet", "restart", "--interface", "none0", check=False)
    assert refused.returncode == 1
    assert nodes.run("a", "timeout", "5", "ls", "/net", check=False).returncode
    nodes.run("a", "timeout", "20", "qnet", "restart")
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    assert nodes.run("a", "timeout", "5", "cat", "/net/b/etc/hostname").stdout == "b\n"
    assert nodes.run("a", "grep", "-c", " /net ", "/proc/mounts").stdout == "1\n"


def test_a_mount_that_is_not_wanted_any_more_is_removed(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("a", "qnet", "nodes", "--wait", "b")
    with cluster.running("a", "sh", "-c", "cd /net/b/tmp && echo there && exec sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        cluster.run("a", "sed", "-i", 's#point = "/net"#point = "/tmp/net"#', "/etc/qnet/qnet.toml")
        assert json.loads(cluster.run("a", "qnet", "restart", "--json").stdout)["mounts"] == []
        assert cluster.run("a", "grep", "-c", " /net ", "/proc/mounts", check=False).stdout == "0\n"
        assert "b" in cluster.run("a", "timeout", "10", "ls", "/tmp/net").stdout.split()


def test_two_restarts_at_once_are_one_after_the_other(nodes: kit.Cluster) -> None:
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    script = "cd /net/b/tmp && echo there && read line && ls -d . && exec sleep 60"
    with nodes.running("a", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"there\n"
        told = nodes.run("a", "sh", "-c", "qnet restart & first=$!; qnet up & qnet restart && wait $first").stdout
        assert told.count("/net kept") == 2
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b".\n"


def test_a_full_run_directory_is_said_to_be_full(start_cluster: Start) -> None:
    cluster = start_cluster("[nodes.a]\n")
    cluster.run("a", "sh", "-c", "qnet down && mount -t tmpfs -o mode=755,size=16k none /run/qnet")
    cluster.run("a", "dd", "if=/dev/zero", "of=/run/qnet/fill", "bs=4k", check=False)
    refused = cluster.run("a", "qnet", "up", check=False)
    assert refused.returncode == 1
    assert "/run/qnet: no space left on device" in refused.stderr
    cluster.run("a", "rm", "/run/qnet/fill")
    cluster.run("a", "qnet", "up")


def test_a_shell_that_has_files_of_it_open_restarts_it(nodes: kit.Cluster) -> None:
    """Whoever starts the next daemon closes what it inherits, while there is no daemon to ask."""
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    words = "exec 7<>/net/b/tmp/held && echo one >&7 && timeout 20 qnet restart && echo two >&7 && cat /net/b/tmp/held"
    assert nodes.run("a", "sh", "-c", words).stdout.endswith("one\ntwo\n")


def test_its_own_streams_are_no_files_of_the_mount(nodes: kit.Cluster) -> None:
    """They would be waited for while there is no daemon."""
    nodes.run("a", "qnet", "nodes", "--wait", "b")
    for words, name in ("<", "input"), (">", "output"), ("2>", "error"):
        script = f"cd /net/b/tmp && echo > said && timeout 20 qnet restart {words} said; echo $?; cat said >&2"
        done = nodes.run("a", "sh", "-c", script)
        assert done.stdout == "1\n"
        assert f"standard {name} is a file of /net" in done.stderr
    # Where it is does not matter.
    assert "/net kept" in nodes.run("a", "sh", "-c", "cd /net/b/tmp && timeout 20 qnet restart").stdout
