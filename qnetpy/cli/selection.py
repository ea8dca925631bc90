"""Which nodes a command is for: `-n a,b`, `--all`, `--where CONDITION`; and what those nodes say of themselves.

Which nodes are up, and their roles, is known to this node's daemon; the rest is asked of each node's process manager, all at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from qnetpy.cli.output import CommandError

if TYPE_CHECKING:
    from qnetpy.cli.where import Facts
    from resmgr.client import Client
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.nodefacts import NodeFacts


class Place(NamedTuple):
    """A node that is up."""

    name: str
    nd: int
    roles: frozenset[str] = frozenset()


class Report(NamedTuple):
    """What a node says of itself, or why it does not."""

    place: Place
    facts: NodeFacts | ResmgrError


def add_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--node", metavar="NODE[,NODE...]", help="of these nodes (default: this one)")
    where.add_argument("--all", action="store_true", help="of every node that is up, this one too")
    where.add_argument("--where", metavar="CONDITION", help="of the nodes of which this is true: 'cpus >= 4 and roles = build'")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def places(client: Client, args: argparse.Namespace) -> list[Place]:
    """The nodes that *args* chooses, at least one. CommandError when one is not up, or none fits."""
    if args.all:
        return up(args.config)
    if args.where is not None:
        return [report.place for report in fitting(client, args.where, args.config)]
    return named(client, (args.node or client.node).split(","))


def named(client: Client, names: list[str], status: int = 1) -> list[Place]:
    """Nodes by their names. CommandError (*status*) when one is not up."""
    import errno

    from qnetpy.cli import choice
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import node_descriptor

    found = []
    for name in dict.fromkeys(names):
        choice.check(name, status)
        try:
            found.append(Place(name, node_descriptor(client, name)))
        except ResmgrError as error:
            choice.explain(name, error, status)
            if error.errno == errno.ENOENT:
                raise CommandError(f"no node {name} is up", "qnet ls", status) from error
            raise CommandError(f"{name}: {(error.strerror or str(error)).lower()}", "", status) from error
    return found


def up(config: str | None) -> list[Place]:
    """Every node that is up, this one first."""
    from qnetpy.cli import daemon

    told = daemon.ask("nodes", config)
    nodes = told["nodes"]
    assert isinstance(nodes, list)
    roles = told.get("roles")
    own = Place(str(told["self"]), 0, frozenset(map(str, roles)) if isinstance(roles, list) else frozenset())
    return [own, *(Place(node["name"], node["nd"], frozenset(node["roles"])) for node in nodes if node["state"] == "up")]


def fitting(client: Client, condition: str, config: str | None, status: int = 1) -> list[Report]:
    """Nodes that are up, say so, and of which *condition* is true. CommandError (*status*) when there is none."""
    from qnetpy.cli.where import condition as parse

    test = parse(condition)
    found = reports(client, up(config))
    fit = [report for report in found if (facts := as_values(report)) is not None and test(facts)]
    if not fit:
        silent = [report.place.name for report in found if as_values(report) is None]
        said = f"; {', '.join(silent)} said nothing of itself" if silent else ""
        raise CommandError(f"no node that is up fits {condition!r}{said}", "qnet sin net", status)
    return fit


def reports(client: Client, places: list[Place]) -> list[Report]:
    """Ask all of them."""
    from resmgr.procmgr.client import node_facts

    return [Report(place, facts) for place, facts in zip(places, node_facts(client, [place.nd for place in places]), strict=True)]


def as_values(report: Report) -> Facts | None:
    """For a condition; None when the node said nothing."""
    from resmgr.procmgr.nodefacts import NodeFacts

    facts = report.facts
    if not isinstance(facts, NodeFacts):
        return None
    return facts._asdict() | {"name": report.place.name, "roles": report.place.roles}


def least_loaded(found: list[Report]) -> Place | None:
    """The node with the least load for each of its processors; among equals not always the same one. None when none said anything."""
    import os

    from resmgr.procmgr.nodefacts import NodeFacts

    loads = [(report.facts.load / report.facts.cpus, report.place) for report in found if isinstance(report.facts, NodeFacts)]
    if not loads:
        return None
    least = min(load for load, _ in loads)
    equal = [place for load, place in loads if load <= least + 0.05]
    return equal[os.getpid() % len(equal)]


def refusal(place: Place, error: ResmgrError) -> str:
    """One line: why a node does not answer a question about its processes."""
    import errno

    if error.errno == errno.EPERM:
        return f"{place.name} does not let you see or end its processes; try: [access.spawn] in {place.name}'s configuration"
    if error.errno == errno.ENOSYS:
        return f"{place.name} runs another version, which does not know this question"
    if error.errno == errno.EBADF:
        return f"{place.name} starts no programs for anybody"
    return f"{place.name}: {(error.strerror or str(error)).lower()}"
