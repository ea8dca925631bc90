"""Programs that are nodes themselves: what docs/howto/embed.md shows, run as it stands there, and what can go wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from qnetpy.config import Config, Driver, Qnet, Stack
from qnetpy.embed import configured
from qnetpy.testing import cluster as kit
from qnetpy.testing.cluster import facts
from stack.core.commandline import Load
from stack.core.module import Kind

pytestmark = [pytest.mark.cluster, pytest.mark.priv]
Start = Callable[..., kit.Cluster]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "embed.md"
QUIET = "[nodes.a]\nboot = []\nshutdown = []\n[nodes.b]\nboot = []\nshutdown = []\n"


@pytest.fixture(scope="module")
def machines(_rights: None) -> Iterator[kit.Cluster]:
    """a and b, on which no daemon runs."""
    with kit.cluster(QUIET) as running:
        yield running


def program(name: str) -> str:
    found = re.search(rf"^```python {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_what_the_page_shows_works(machines: kit.Cluster) -> None:
    with machines.running("b", sys.executable, "-c", program("server")) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"serving\n"
        answers = [machines.run("a", sys.executable, "-c", program("client"), seconds=20) for _ in range(2)]

    assert [(answer.stdout, answer.stderr) for answer in answers] == [("FROM A\n", "")] * 2, "it serves on when a client has gone"


def test_a_daemon_and_an_embedded_node_are_nodes_to_each_other(start_cluster: Start) -> None:
    cluster = start_cluster("[nodes.a]\nboot = []\nshutdown = []\n[nodes.b]\n")
    text = program("client").replace("        print(", "        import os\n        assert os.umask(0o27) == 0o27\n        print(")
    with cluster.running("b", "qnet", "name", "upper") as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"attached ")
        answer = cluster.run("a", sys.executable, "-c", "import os; os.umask(0o27)\n" + text, seconds=20)

    assert "from a" in answer.stdout
    known = facts(cluster, "b", "nodes")["nodes"]
    assert [(one["name"], one["state"], one["reason"]) for one in known] == [("a", "down", "left")]


MISTAKES = """
import os
import trio
from qnetpy.embed import open_node
from resmgr.errors import ResmgrError
from stack.core.errors import ModuleError

def descriptors():
    return len(os.listdir("/proc/self/fd"))

async def main():
    before = descriptors()
    try:
        async with open_node(interfaces=["eth9"]) as node:
            pass
    except ModuleError as error:
        print("interface:", error)
    try:
        async with open_node(interfaces=["eth0"], key_dir="/nowhere") as node:
            pass
    except ModuleError as error:
        print("keys:", error)
    async with open_node(interfaces=["eth0"]) as node:
        try:
            node.connect("nobody", 1, 50)
        except ResmgrError as error:
            print("node:", error)
        listening = len(node.qnet.netfs.listeners)
        with trio.move_on_after(0.3) as scope:
            await node.up("nobody")
        print("gave up:", scope.cancelled_caught)
        assert len(node.qnet.netfs.listeners) == listening
    print("left:", descriptors() - before)

trio.run(main)
"""


def test_what_is_missing_is_one_sentence_and_nothing_is_left(machines: kit.Cluster) -> None:
    said = machines.run("a", sys.executable, "-c", MISTAKES, seconds=20).stdout.splitlines()

    assert said[0].startswith("interface: ")
    assert "eth9" in said[0]
    assert said[1].startswith("keys: ")
    assert "/nowhere" in said[1]
    assert said[2:] == ["node: [Errno 113] no node nobody was met yet", "gave up: True", "left: 0"]


CHOICES = """
import trio
from qnetpy.embed import open_node
from resmgr.aio import send
from resmgr.errors import ResmgrError

async def main():
    async with open_node(interfaces=["eth0"]) as node:
        with trio.fail_after(10):
            await node.up("b")
        chid = (await node.name_open("upper", node="b")).chid
        for name in ("b~exclusive:eth0", "b~redundant", "b~best", "b~preferred:eth9", "b~preferred"):
            try:
                print(name, bytes((await send(node.connect(name, 1, chid), [b"x"], reply_len=8)).data))
            except ResmgrError as error:
                print(name, error.errno)

trio.run(main)
"""


def test_a_node_with_a_choice_of_paths(machines: kit.Cluster) -> None:
    with machines.running("b", sys.executable, "-c", program("server")) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"serving\n"
        said = machines.run("a", sys.executable, "-c", CHOICES, seconds=20).stdout.splitlines()

    assert said == ["b~exclusive:eth0 b'X'", "b~redundant b'X'", "b~best 22", "b~preferred:eth9 6", "b~preferred 22"]


def test_the_bearers_are_those_of_the_configuration(machines: kit.Cluster) -> None:
    for name in "ab":
        machines.run(name, "sh", "-c", """printf '[qnet]\\nbearers = ["udp"]\\n' >/tmp/udp.toml""")
    server, client = (program(name).replace('interfaces=["eth0"]', 'config="/tmp/udp.toml"') for name in ("server", "client"))
    shown = client.replace("        print(", "        print([one.name for one in node.stack.interfaces])\n        print(")
    with machines.running("b", sys.executable, "-c", server) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"serving\n"
        answer = machines.run("a", sys.executable, "-c", shown, seconds=20)

    assert answer.stdout == "['udp0']\nFROM A\n"


def test_what_is_given_is_put_before_what_is_configured() -> None:
    both = Config(qnet=Qnet(bearers=("ethernet", "udp"), interfaces=("eth5",)))
    listed = attrs.evolve(both, stack=Stack(drivers=(Driver("packet", "ifname=eth7", fault="drop=5%"),)))
    udp = Load(Kind.DRIVER, "udp", "port=34997,ethertype=0x88b5")
    assert configured(both) == [Load(Kind.DRIVER, "packet", "ifname=eth5"), udp]
    assert configured(both, ["eth0"]) == configured(listed, ["eth0"]) == [Load(Kind.DRIVER, "packet", "ifname=eth0"), udp]
    assert configured(listed) == [Load(Kind.DRIVER, "packet", "ifname=eth7", [("fault", "drop=5%")])]


TWO = "[links.lan]\n[links.san]\n[nodes.a]\nboot = []\nshutdown = []\n[nodes.b]\nboot = []\nshutdown = []\n"
SHOWN = """
import errno
import subprocess
import trio
from qnetpy.embed import open_node
from stack.core.errors import ModuleError

open("/tmp/empty.toml", "w").close()

async def main():
    async with open_node(config="/tmp/empty.toml") as node:
        print(sorted(one.name for one in node.stack.interfaces))
    subprocess.run("ip link set eth0 down; ip link set eth1 down", shell=True, check=True)
    try:
        async with open_node(config="/tmp/empty.toml"):
            pass
    except ModuleError as error:
        print(error.errno == errno.ENODEV, error)

trio.run(main)
"""


def test_without_names_every_interface_that_is_up_is_used(start_cluster: Start) -> None:
    cluster = start_cluster(TWO)
    used, refused = cluster.run("a", sys.executable, "-c", SHOWN, seconds=20).stdout.splitlines()

    assert used == "['eth0', 'eth1']"
    assert refused.startswith("True ")
    assert "no Ethernet interface is up" in refused
