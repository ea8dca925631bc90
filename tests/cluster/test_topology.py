"""A topology file becomes a plan with nothing left open, or an error that says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qnetpy.cluster import topology
from qnetpy.config import Driver
from qnetpy.settings import SettingsError

ROOT = Path(__file__).parents[2]


def plan(text: str) -> topology.Plan:
    return topology.plan(topology.parse(text, "file"), "trial", "file")


def test_numbers_follow_from_the_order() -> None:
    made = plan('[links.lan]\n[links.fast]\nmtu = 9000\n[nodes.a]\n[nodes.b]\nlinks = ["fast"]\n[nodes.c]\n')

    assert made.nodes["a"].ports == (
        topology.Port("lan", "eth0", "10.77.0.1", "02:71:6e:00:00:01"),
        topology.Port("fast", "eth1", "10.77.1.1", "02:71:6e:00:01:01"),
    )
    assert made.nodes["b"].ports == (topology.Port("fast", "eth0", "10.77.1.2", "02:71:6e:00:01:02"),)
    assert made.hosts().splitlines() == [
        "127.0.0.1 localhost",
        "10.77.0.1 a",
        "10.77.1.1 a-fast",
        "10.77.1.2 b",
        "10.77.0.3 c",
        "10.77.1.3 c-fast",
    ]


def test_a_node_gets_the_common_settings_its_own_and_what_the_topology_says() -> None:
    made = plan(
        'config = {qnet = {timers = {down = 7.0}, mount = {point = "/n"}}}\n[links.lan]\nfault = "drop=5%"\n'
        '[nodes.a]\nfault = "delay=1ms"\n[nodes.b]\nconfig = {qnet = {timers = {down = 9.0}}}\n'
    )

    first, second = (topology.node_config(made, made.nodes[name]) for name in "ab")

    assert (first.qnet.timers.down, second.qnet.timers.down) == (7.0, 9.0)
    assert (first.qnet.mount.point, second.qnet.mount.point) == ("/n", "/n")
    assert (first.node.name, first.qnet.interfaces) == ("a", ("eth0",))
    assert first.stack.drivers == (Driver("packet", "ifname=eth0", "drop=5%,delay=1ms"),)
    assert second.stack.drivers == (Driver("packet", "ifname=eth0", "drop=5%"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file: nodes: 1 to 64 nodes are needed, not 0"),
        ("nodes = 3", "file: nodes: a table expected, not 3"),
        ("[nodes.A]", "file: nodes.A: a node's name is letters a-z, digits and hyphens"),
        ("[nodes.a]\nlink = []", "file: nodes.a.link: unknown key; did you mean 'links'?"),
        ('[nodes.a]\nroles = ["X"]', "file: nodes.a.roles: 'X' is not a name of letters a-z, digits and hyphens"),
        ('[nodes.a]\nlinks = ["lam"]', "file: nodes.a.links: no link 'lam'; known: lan"),
        ("[links.verylongname]\n[nodes.a]", "file: links.verylongname: a link's name is a letter and at most 7 more letters or digits"),
        ("[links.lan]\nmtu = 100\n[nodes.a]", "file: links.lan.mtu: 576 to 65535 bytes"),
        ('[links.lan]\nkind = "veth"\n[nodes.a]', "file: links.lan: a veth link joins two nodes, not 1"),
        ('users = [{name = "x"}]\n[nodes.a]', "file: users[0]: a user needs a name and a uid from 1 to 65533"),
        ("[nodes.a.config.qnet]\nethertyp = 1", "file: nodes.a.config.qnet.ethertyp: unknown key; did you mean 'ethertype'?"),
        ("[nodes.a.config.qnet]\nethertype = 1", "file: nodes.a.config: qnet.ethertype: 0x1 is not an ethertype: 0x0600 to 0xffff"),
        ("[config.nod]\n[nodes.a]", "file: nodes.a.config.nod: unknown key; did you mean 'node'? (and 1 more)"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan(text)
    assert str(caught.value) in (message, message.replace("nodes.a.config", "config"))


@pytest.mark.parametrize("path", sorted((ROOT / "clusters").glob("*/cluster.toml")), ids=lambda path: path.parent.name)
def test_every_topology_of_the_project_is_good(path: Path) -> None:
    made = topology.read(path.parent)

    assert made.name == path.parent.name
    assert made.topology.title
    assert set(json.loads(made.as_json())["nodes"]) == set(made.nodes)


def test_the_reference_page_is_current() -> None:
    assert (ROOT / "docs" / "reference" / "topology.md").read_text() == topology.reference_page()
