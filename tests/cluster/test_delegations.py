"""Two clients that read files of a third node over and over, and programs there that write them; clients that are stopped, and killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from qnetpy.testing import cluster as kit
from tests.cluster.test_coherence import TOPOLOGY, Program

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]

SERVER = """
import fcntl, json, os, sys, time
root = "/tmp/t"
def write(name, text):
    # Seconds that it took to open the file.
    began = time.monotonic()
    fd = os.open(f"/tmp/t/{name}", os.O_WRONLY | os.O_TRUNC)
    waited = time.monotonic() - began
    os.write(fd, text.encode())
    os.close(fd)
    return waited
def grab(name):
    with open(f"/tmp/t/{name}", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return "had it"
"""
ADD = """
def add(count, pause=0):
    for _ in range(count):
        with open(root + "/number", "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            value = int(file.read())
            time.sleep(pause)
            file.seek(0)
            file.write(f"{value + 1:08d}")
            file.flush()
            fcntl.lockf(file, fcntl.LOCK_UN)
    return count
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except OSError as error:
        print(json.dumps(error.strerror), flush=True)
"""
CLIENT = """
import fcntl, json, sys, time
root = "/net/s/tmp/t"
def read(name):
    with open(f"/net/s/tmp/t/{name}") as file:
        return file.read()
def write(name, text):
    with open(f"/net/s/tmp/t/{name}", "w") as file:
        return file.write(text)
held = []
def hold(name):
    held.append(open(f"/net/s/tmp/t/{name}", "r+"))
    fcntl.lockf(held[0], fcntl.LOCK_EX)
    return True
"""
BROKEN = ("Host is down", "Stale file handle")
ENDS = 30.0
"""Seconds after which somebody who waits for a client was not freed by this server, which takes three: its kernel does it after 45."""


def signal(cluster: kit.Cluster, node: str, name: str) -> None:
    cluster.run(node, "sh", "-c", f"kill -{name} $(cat /run/qnet/lock)")


def opened_here(cluster: kit.Cluster, node: str) -> int:
    return int(kit.facts(cluster, node)["mounts"][0]["events"].get("delegated_opens", 0))


def test_a_local_writer_waits_for_clients_and_they_read_what_he_wrote(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    # A file for each step: one that somebody has changed is not delegated for a minute.
    cluster.run(
        "s",
        "sh",
        "-c",
        "mkdir -p /tmp/t && cd /tmp/t && for name in first third fifth; do echo -n $name > $name; done; echo -n 00000000 > number",
    )
    for node in "a", "b":
        cluster.run(node, "qnet", "nodes", "--wait", "s")
        cluster.run(node, "ls", "-l", "/net/s/tmp/t")
    running = cluster.running
    with (
        running("a", "python3", "-c", CLIENT + ADD) as a,
        running("b", "python3", "-c", CLIENT + ADD) as b,
        running("s", "python3", "-c", SERVER + ADD) as s,
    ):
        clients, server = (Program(a), Program(b)), Program(s)
        for node, client in zip("ab", clients, strict=True):
            delegate(cluster, node, client, "first")
        waited = server.ask("write('first', 'second')")
        assert isinstance(waited, float)
        print(f"a writer waited {waited * 1000:.1f} ms for two clients")
        assert waited < ENDS
        for client in clients:
            assert client.ask("read('first')") == "second"
        all_add(cluster, clients, server)
        client_writes(clients, server)
        one_is_stopped(cluster, clients, server)
        one_is_killed(cluster, clients, server)


def delegate(cluster: kit.Cluster, node: str, client: Program, name: str) -> None:
    """Have *client* read a file until it opens that without the server."""
    before = opened_here(cluster, node)

    def opens_it() -> bool:
        assert client.ask(f"[read({name!r}) for _ in range(6)][-1]") == name
        return opened_here(cluster, node) > before

    kit.wait_for(opens_it, ENDS)


def all_add(cluster: kit.Cluster, clients: tuple[Program, Program], server: Program) -> None:
    """To a number under a lock: one client alone, which grants the locks itself, then everybody."""
    a, b = clients
    assert a.ask("add(20)") == 20
    assert kit.facts(cluster, "a")["mounts"][0]["events"].get("locks_here", 0) > 0
    for program in (a, b, server):
        program.send("add(20, 0.001)")
    assert [program.receive() for program in (a, b, server)] == [20, 20, 20]
    assert server.ask("open(root + '/number').read()") == "00000080"


def client_writes(clients: tuple[Program, Program], server: Program) -> None:
    a, b = clients
    assert a.ask("write('first', 'from a')") == 6
    assert b.ask("read('first')") == "from a"
    assert server.ask("open('/tmp/t/first').read()") == "from a"


def one_is_stopped(cluster: kit.Cluster, clients: tuple[Program, Program], server: Program) -> None:
    a, b = clients
    delegate(cluster, "a", a, "third")
    signal(cluster, "a", "STOP")
    waited = server.ask("write('third', 'fourth')")
    assert isinstance(waited, float)
    print(f"a writer waited {waited:.1f} s for a client that is stopped")
    assert 1 < waited < ENDS
    assert b.ask("read('third')") == "fourth"
    a.send("read('third')")
    signal(cluster, "a", "CONT")
    assert a.receive() in ("fourth", *BROKEN)
    kit.wait_for(lambda: a.ask("read('third')") == "fourth", ENDS)


def one_is_killed(cluster: kit.Cluster, clients: tuple[Program, Program], server: Program) -> None:
    delegate(cluster, "b", clients[1], "fifth")
    signal(cluster, "b", "KILL")
    waited = server.ask("write('fifth', 'sixth')")
    assert isinstance(waited, float)
    print(f"a writer waited {waited:.1f} s for a client that was killed")
    assert waited < ENDS
    assert server.ask("open('/tmp/t/fifth').read()") == "sixth"


def test_a_lock_that_a_client_granted_itself_outlives_the_link_and_the_server(start_cluster: Start) -> None:
    cluster = start_cluster(TOPOLOGY)
    cluster.run("s", "sh", "-c", "mkdir -p /tmp/t && cd /tmp/t && echo text | tee carrier restart")
    cluster.run("a", "qnet", "nodes", "--wait", "s")
    cluster.run("a", "ls", "-l", "/net/s/tmp/t")

    with cluster.running("a", "python3", "-c", CLIENT + ADD) as a, cluster.running("s", "python3", "-c", SERVER + ADD) as s:
        client, server = Program(a), Program(s)

        def outlives(name: str, lose: Callable[[], object]) -> None:
            before = kit.facts(cluster, "a")["mounts"][0]["events"].get("locks_here", 0)
            assert client.ask(f"hold({name!r})") is True
            assert kit.facts(cluster, "a")["mounts"][0]["events"]["locks_here"] == before + 1
            lose()
            kit.wait_for(lambda: client.ask("held[0].seek(0) or held[0].read()") == "text\n", ENDS)
            assert server.ask(f"grab({name!r})") == os.strerror(errno.EAGAIN)
            assert client.ask("held.pop().close()") is None
            kit.wait_for(lambda: server.ask(f"grab({name!r})") == "had it", ENDS)

        def lose_carrier() -> None:
            cluster.link_down("s")
            kit.wait_for(lambda: kit.states(cluster, "a")["s"] == "down", ENDS)
            cluster.link_up("s")

        outlives("restart", lambda: cluster.run("s", "qnet", "restart"))
        outlives("carrier", lose_carrier)
