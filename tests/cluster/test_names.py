"""Global names and events of nodes, between programs on whole nodes: several owners, kill -9, a pulled cable, a node that starts again; and
what docs/howto/names.md shows, run as it stands there. One cluster for all, which each test leaves as it was.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "names.md"
TOPOLOGY = """
users = [{ name = "alice", uid = 4001 }]
[nodes.a]
[nodes.b]
[nodes.c]
[nodes.d]
boot = []
shutdown = []
"""


@pytest.fixture(scope="module")
def three(_rights: None) -> Iterator[kit.Cluster]:
    """Three nodes with daemons, and d for programs that are nodes."""
    with kit.cluster(TOPOLOGY) as cluster:
        for node in "abc":
            cluster.run(node, "qnet", "nodes", "--wait", "a,b,c")
        yield cluster


def program(name: str) -> str:
    found = re.search(rf"^```python {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def owners(cluster: kit.Cluster, node: str, name: str) -> list[str]:
    return [one["node"] for one in facts(cluster, node, "name")["names"] if one["name"] == name and one["scope"] == "global"]


@contextmanager
def serving(cluster: kit.Cluster, node: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with cluster.running(node, "qnet", "name", *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"attached ")
        yield process


class Heard:
    """What a program that prints a JSON object for each event has printed."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._stream = stream
        self.events: list[dict[str, Any]] = []

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            line = self._stream.readline()
            assert line, f"it ended; {self.events}"
            self.events.append(json.loads(line))
            if wanted(self.events[-1]):
                return self.events[-1]


def is_event(kind: str, name: str = "", node: str = "") -> Callable[[dict[str, Any]], bool]:
    return lambda one: one["event"] == kind and (not name or one["name"] == name) and (not node or one["node"] == node)


def test_several_owners_one_of_which_is_killed(three: kit.Cluster) -> None:
    with ExitStack() as stack:
        watch = Heard(stack.enter_context(three.running("a", "qnet", "name", "--watch", "--json")).stdout)
        for node in "bc":
            stack.enter_context(serving(three, node, "-g", "clock"))
            watch.until(is_event("appeared", "clock", node))
        assert owners(three, "a", "clock") == ["b", "c"] == owners(three, "c", "clock")
        table = three.run("a", "qnet", "name").stdout
        assert re.search(r"^clock +global +b +\d+ +\d+ +root$", table, re.MULTILINE), table

        for path in ("/net/a/dev/name/global", "/net/b/dev/name/global"):
            assert three.run("a", "ls", path).stdout == "clock\n"
            assert three.run("a", "stat", "-c", "%F", f"{path}/clock").stdout == "socket\n"

        assert three.run("a", "qnet", "send", "-g", "clock@b", "x").stdout.startswith("b got 1 bytes from user 0 of node a")
        assert three.run("c", "qnet", "send", "-g", "clock", "x").stdout.startswith("c got"), "here first"
        answered = {three.run("a", "qnet", "send", "-g", "clock~roundrobin", "x").stdout[0] for _ in range(2)}
        assert answered == {"b", "c"}
        refused = three.run("a", "qnet", "send", "-g", "clock@d", "x", check=False)
        assert refused.stderr == "qnet send: no node that is up has the global name 'clock@d'; try: qnet name, which lists them\n"

        [pid] = [one["pid"] for one in facts(three, "b", "name")["names"] if one["node"] == "b"]
        killed = float(three.run("b", "sh", "-c", f"date +%s.%N; kill -9 {pid}").stdout)
        gone = watch.until(is_event("withdrawn", "clock", "b"))
        assert gone["time"] - killed < 1.0, "not by a lease: its socket told"
        assert three.run("a", "qnet", "send", "-g", "clock", "x").stdout.startswith("c got")
        assert owners(three, "a", "clock") == ["c"]
    wait_for(lambda: owners(three, "a", "clock") == [])


NODES = """
import json, time
from qnetpy.cli.daemon import socket_path
from resmgr.client import Client
from resmgr.nodes.client import node_events
from resmgr.server import Pulse

with Client(socket_path()) as client:
    channel = client.channel()
    with node_events(client, channel=channel, code=5) as events:
        while True:
            pulse = channel.receive()
            assert isinstance(pulse, Pulse) and pulse.code == 5
            first = True
            for event in events.read(0):
                if first and event.node:
                    assert (pulse.value >> 32, pulse.value & 0xFFFFFFFF) == (event.kind, event.nd), (pulse, event)
                first = False
                print(json.dumps({"event": event.kind.name, "node": event.node, "boot": event.boot, "why": event.reason}), flush=True)
"""


def test_a_pulled_cable_and_a_node_that_starts_again(three: kit.Cluster) -> None:
    with ExitStack() as stack:
        heard = Heard(stack.enter_context(three.running("a", sys.executable, "-c", NODES)).stdout)
        heard.until(is_event("CURRENT"))
        assert {(one["event"], one["node"]) for one in heard.events} >= {("UP", "b"), ("UP", "c"), ("CURRENT", "")}
        stack.enter_context(serving(three, "c", "-g", "log"))
        stack.enter_context(serving(three, "a", "-g", "log"))
        wait_for(lambda: owners(three, "b", "log") == ["a", "c"])

        three.link_down("c")
        heard.until(is_event("SUSPECT", node="c"))
        heard.until(is_event("DOWN", node="c"))
        assert owners(three, "a", "log") == ["a"], "in the same instant"
        wait_for(lambda: owners(three, "c", "log") == ["c"], what="each side keeps its own")
        three.link_up("c")
        boot = heard.until(is_event("UP", node="c"))["boot"]
        wait_for(lambda: owners(three, "a", "log") == ["a", "c"] == owners(three, "c", "log"), what="all again")

        three.run("c", "sh", "-c", "kill -9 $(cat /run/qnet/lock)")
        heard.until(is_event("DOWN", node="c"))
        assert owners(three, "a", "log") == ["a"]
        three.run("c", "qnet", "up")
        again = heard.until(is_event("RESTARTED", node="c"))
        assert again["boot"] != boot
        assert owners(three, "a", "log") == ["a"], "it has none"
    three.run("c", "qnet", "nodes", "--wait", "a,b")


def test_qnet_is_unloaded_and_loaded_again(three: kit.Cluster) -> None:
    with serving(three, "a", "-g", "clock"), serving(three, "b", "-g", "clock"):
        wait_for(lambda: owners(three, "a", "clock") == ["a", "b"] == owners(three, "b", "clock"))
        three.run("a", "qnet", "umount", "qnet")
        assert owners(three, "a", "clock") == ["a"], "the program is there still, and nobody else"
        wait_for(lambda: owners(three, "b", "clock") == ["b"])
        three.run("a", "qnet", "mount", "-T", "io-pkt", "qnet")
        wait_for(lambda: owners(three, "a", "clock") == ["a", "b"] == owners(three, "b", "clock"))
    three.run("a", "qnet", "nodes", "--wait", "b,c")
    three.run("c", "qnet", "nodes", "--wait", "a,b")


def test_who_may_attach_global_names(three: kit.Cluster) -> None:
    refused = three.run("a", "qnet", "name", "-g", "clock", user="alice", check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "qnet name: this user may not attach global names here, or not this one; "
        "try: [access.announce] and [[access.names]] in the configuration\n"
    )
    with three.running("a", "qnet", "name", "mine", user="alice") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"attached 'mine' on node a")
        told = facts(three, "a", "name")["names"]
        assert [(one["name"], one["scope"], one["uid"]) for one in told] == [("mine", "local", 4001)]
        assert facts(three, "b", "name")["names"] == []


def test_what_the_page_shows_works(three: kit.Cluster) -> None:
    for shown in ("server", "trio"):
        with (
            three.running("a", sys.executable, "-c", program("client")) as client,
            three.running("b", sys.executable, "-c", program(shown)) as server,
        ):
            assert server.stdout is not None
            assert server.stdout.readline() == b"attached\n"
            answer, problem = client.communicate(timeout=20)
            assert (answer, problem) == (b"noon on b\n", b""), shown
            with three.running("b", sys.executable, "-c", program("names")) as names:
                assert names.stdout is not None
                assert names.stdout.readline() == b"APPEARED clock b\n"
        wait_for(lambda: owners(three, "a", "clock") == [])
    with three.running("a", sys.executable, "-c", program("nodes")) as nodes:
        assert nodes.stdout is not None
        told = set(iter(nodes.stdout.readline, b"CURRENT  \n"))
        assert told >= {b"UP b \n", b"UP c \n"}


EMBEDDED = """
import trio
from qnetpy.embed import open_node
from resmgr.aio import send
from resmgr.nodes.protocol import NodeChange

async def main():
    async with open_node(interfaces=["eth0"]) as node:
        with trio.fail_after(20), node.events() as events:
            seen = set()
            async for event in events:
                if event.kind is NodeChange.UP:
                    seen.add(event.node)
                if seen == {"a", "b", "c"}:
                    break
        with node.serve() as channel:
            node.name_attach("embedded", channel, scope="global")
            with trio.fail_after(20):
                far = await node.name_open("far", scope="global", wait=True)
                print((await send(far, [b"x"], reply_len=5)).data.decode(), flush=True)
                message = await channel.receive()
                message.reply(0, b"hello " + message.info.node.encode())
            node.name_detach("embedded", scope="global")
            with trio.fail_after(20), node.names("far") as names:
                async for event in names:
                    print(event.kind.name, event.name, event.record.node, flush=True)
                    if event.kind.name == "WITHDRAWN":
                        break

trio.run(main)
"""


def test_an_embedded_node(three: kit.Cluster) -> None:
    with three.running("d", sys.executable, "-c", EMBEDDED) as node:
        assert node.stdout is not None
        with serving(three, "b", "-g", "far"):
            assert node.stdout.readline() == b"b got\n"
            assert three.run("a", "qnet", "send", "-g", "--wait", "10", "embedded", "x").stdout == "hello a"
            assert [node.stdout.readline() for _ in range(2)] == [b"APPEARED far b\n", b"CURRENT  \n"]
        assert node.stdout.readline() == b"WITHDRAWN far b\n"
        assert node.wait(20) == 0
    wait_for(lambda: owners(three, "a", "embedded") == [])
