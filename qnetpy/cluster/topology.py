"""A cluster as data: nodes, links, users and what runs where, from one TOML file. Turned into a `Plan`, which leaves nothing open.

The folder's name is the cluster's name. Addresses follow from the order of links and nodes, so that the same file gives the same cluster:
link number l (from 0) is 10.77.l.0/24, node number k (from 1) has .k there and the MAC address 02:71:6e:00:LL:KK. The table `[config]`
holds settings of `qnetpy.config` for every node, `[nodes.NAME.config]` for one; the latter is laid over the former.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from qnetpy import config, settings
from qnetpy.config import Config
from qnetpy.identity.names import is_name
from qnetpy.settings import SettingsError, setting

LINK_NAME = re.compile(r"[a-z][a-z0-9]{0,7}")
"""Links name interfaces, which have 15 bytes."""
NODES_MAX = 64
LINKS_MAX = 16
MTU_MIN = 576
MTU_MAX = 65535


@attrs.frozen
class Link:
    """A wire between nodes."""

    kind: Literal["bridge", "veth"] = setting(
        "bridge: an Ethernet switch for any number of nodes; a node's own carrier can be taken away. veth: one cable between two nodes.",
        "bridge",
    )
    mtu: int = setting("Largest packet, bytes.", 1500)
    offload: bool = setting(
        "Let frames larger than the MTU cross in one piece, as the kernel likes to do between its own interfaces.", False
    )
    learning: bool = setting("Whether a bridge learns who is where. If not, it is a hub: every node hears every frame.", True)
    fault: str = setting("Faults around every node's driver on this link, as in stack.drivers: drop=5%,reorder=5%.", "")


@attrs.frozen
class User:
    """A user of every node."""

    name: str = setting("Login name.", "")
    uid: int = setting("User and group number.", 0)


@attrs.frozen
class NodeSpec:
    """One machine."""

    links: tuple[str, ...] = setting("The links it is on, in order: eth0, eth1... Empty: all.", ())
    cluster: str = setting("The cluster whose certificate it has. Another name makes it a stranger on the same wire.", "")
    node: str = setting("The name in its certificate, when it is not its own: for trials with two nodes of one name.", "")
    roles: tuple[str, ...] = setting("Roles in its certificate.", ())
    certificate: Literal["valid", "expired", "none"] = setting("What certificate it has.", "valid")
    fault: str = setting("Faults around its drivers, besides those of the link.", "")
    boot: tuple[tuple[str, ...], ...] = setting("Commands that its init runs, in order, each of which must end with 0.", (("qnet", "up"),))
    shutdown: tuple[tuple[str, ...], ...] = setting("Commands that its init runs when the cluster goes down.", (("qnet", "down"),))
    start: bool = setting("Start it with the cluster.", True)
    config: Config = setting("", Config())


@attrs.frozen
class Topology:
    """Nodes, links and users of a cluster."""

    title: str = setting("One line that says what the cluster is for.", "")
    ipv6: bool = setting("Let the nodes' kernels use IPv6. Qnet does not need it.", False)
    links: dict[str, Link] = setting("Links by name, at most 8 letters and digits. None: one bridge called lan.", attrs.Factory(dict))
    nodes: dict[str, NodeSpec] = setting("Nodes by name.", attrs.Factory(dict))
    users: tuple[User, ...] = setting("Users that every node has besides those of this machine.", ())
    config: Config = setting("Settings of every node, laid under [nodes.NAME.config].", Config())
    writable: tuple[str, ...] = setting("Directories of this machine that nodes may write to; the rest is read-only to them.", ())


@attrs.frozen
class Port:
    """One interface of one node, with everything decided."""

    link: str
    interface: str
    address: str
    mac: str
    """Of the interface in the node; the bridge's end has the same with the local bit's neighbour set."""


@attrs.frozen
class PlannedNode:
    name: str
    ports: tuple[Port, ...]
    spec: NodeSpec


@attrs.frozen
class Plan:
    """A topology with names and numbers filled in."""

    name: str
    topology: Topology
    links: dict[str, Link]
    nodes: dict[str, PlannedNode]

    def hosts(self) -> str:
        """/etc/hosts of every node."""
        lines = ["127.0.0.1 localhost"]
        for node in self.nodes.values():
            lines += [f"{port.address} {node.name if index == 0 else f'{node.name}-{port.link}'}" for index, port in enumerate(node.ports)]
        return "\n".join(lines) + "\n"

    def as_json(self, writable: Sequence[str] = ()) -> str:
        """What the supervisor needs, without the settings that only `up` uses; the supervisor imports no library."""
        return json.dumps(
            {
                "name": self.name,
                "ipv6": self.topology.ipv6,
                "users": [[user.name, user.uid] for user in self.topology.users],
                "writable": [*self.topology.writable, *writable],
                "hosts": self.hosts(),
                "links": {
                    name: {"kind": link.kind, "mtu": link.mtu, "offload": link.offload, "learning": link.learning}
                    for name, link in self.links.items()
                },
                "nodes": {
                    node.name: {
                        "ports": [attrs.asdict(port) for port in node.ports],
                        "boot": node.spec.boot,
                        "shutdown": node.spec.shutdown,
                        "start": node.spec.start,
                    }
                    for node in self.nodes.values()
                },
            }
        )


def _laid_over(under: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def parse(text: str, source: str) -> Topology:
    """Check a topology's text. SettingsError with *source* and the place of the first mistake."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: not TOML: {error}") from error
    common, nodes = table.get("config"), table.get("nodes")
    if isinstance(common, dict) and isinstance(nodes, dict):
        for spec in nodes.values():
            if isinstance(spec, dict) and isinstance(spec.setdefault("config", {}), dict):
                spec["config"] = _laid_over(common, spec["config"])
    return settings.structure(Topology, table, source)


def plan(topology: Topology, name: str, source: str) -> Plan:
    """Number everything and check what types cannot say. SettingsError."""

    def wrong(place: str, why: str) -> SettingsError:
        return SettingsError(f"{source}: {place}: {why}")

    if not is_name(name):
        raise wrong("name", f"{name!r} is not a name of letters a-z, digits and hyphens")
    links = dict(topology.links) or {"lan": Link()}
    if len(links) > LINKS_MAX:
        raise wrong("links", f"{len(links)} are too many: at most {LINKS_MAX}")
    for link_name, link in links.items():
        if not LINK_NAME.fullmatch(link_name):
            raise wrong(f"links.{link_name}", "a link's name is a letter and at most 7 more letters or digits")
        if not MTU_MIN <= link.mtu <= MTU_MAX:
            raise wrong(f"links.{link_name}.mtu", f"{MTU_MIN} to {MTU_MAX} bytes")
    if not 1 <= len(topology.nodes) <= NODES_MAX:
        raise wrong("nodes", f"1 to {NODES_MAX} nodes are needed, not {len(topology.nodes)}")
    order = list(links)
    nodes: dict[str, PlannedNode] = {}
    for number, (node_name, spec) in enumerate(topology.nodes.items(), 1):
        if not is_name(node_name):
            raise wrong(f"nodes.{node_name}", "a node's name is letters a-z, digits and hyphens")
        for what, given in (("cluster", spec.cluster), ("node", spec.node), *(("roles", role) for role in spec.roles)):
            if given and not is_name(given):
                raise wrong(f"nodes.{node_name}.{what}", f"{given!r} is not a name of letters a-z, digits and hyphens")
        config.check(spec.config, f"{source}: nodes.{node_name}.config")
        ports = []
        for index, link_name in enumerate(spec.links or order):
            if link_name not in links:
                raise wrong(f"nodes.{node_name}.links", f"no link {link_name!r}; known: {', '.join(links)}")
            at = order.index(link_name)
            ports.append(Port(link_name, f"eth{index}", f"10.77.{at}.{number}", f"02:71:6e:00:{at:02x}:{number:02x}"))
        nodes[node_name] = PlannedNode(node_name, tuple(ports), spec)
    for link_name, link in links.items():
        members = [node.name for node in nodes.values() for port in node.ports if port.link == link_name]
        if link.kind == "veth" and len(members) != 2:
            raise wrong(f"links.{link_name}", f"a veth link joins two nodes, not {len(members)}")
    for index, user in enumerate(topology.users):
        if not is_name(user.name) or not 0 < user.uid < 65534:
            raise wrong(f"users[{index}]", "a user needs a name and a uid from 1 to 65533")
    return Plan(name, topology, links, nodes)


def read(path: str | Path, name: str | None = None) -> Plan:
    """The plan of a topology file or of the folder that holds `cluster.toml`. SettingsError or OSError."""
    file = Path(path)
    if file.is_dir():
        file = file / "cluster.toml"
    text = file.read_text(encoding="utf-8")
    return plan(parse(text, str(file)), name or file.absolute().parent.name, str(file))


def node_config(planned: Plan, node: PlannedNode) -> Config:
    """The configuration the node's daemon gets: its own settings, with name, interfaces and faults from the topology."""
    own = node.spec.config
    drivers = own.stack.drivers
    if not drivers:
        ports = node.ports if "ethernet" in own.qnet.bearers else ()
        faults = [",".join(filter(None, (planned.links[port.link].fault, node.spec.fault))) for port in ports]
        plain = config.drivers(own, [port.interface for port in ports])
        # What comes behind those of the interfaces is UDP, which no one link's faults are for.
        drivers = tuple(attrs.evolve(one, fault=fault) for one, fault in zip(plain, [*faults, node.spec.fault], strict=False))
    return attrs.evolve(
        own,
        node=attrs.evolve(own.node, name=own.node.name or node.spec.node or node.name),
        stack=attrs.evolve(own.stack, drivers=drivers),
        qnet=attrs.evolve(own.qnet, interfaces=own.qnet.interfaces or tuple(port.interface for port in node.ports)),
    )


def reference_page() -> str:
    """docs/reference/topology.md; a test compares."""
    head = "# Topology files\n\nMade from `qnetpy/cluster/topology.py`. How to use them: [howto/cluster.md](../howto/cluster.md).\n\n"
    return head + settings.reference(Topology, leave_out=(Config,))
