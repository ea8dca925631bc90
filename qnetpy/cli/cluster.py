"""`qnet cluster`: whole nodes in namespaces of this machine, from a topology file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from qnetpy.cli.output import CommandError, as_json, table
from qnetpy.cluster import control, entry, harness, state
from qnetpy.cluster.control import ControlError
from qnetpy.cluster.harness import ClusterError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        child = verbs.add_parser(name, help=text, description=text)
        child.set_defaults(action=action)
        if name not in ("up", "list", "down"):
            child.add_argument("--name", help="which cluster, when several are running")
        return child

    up = verb("up", "start a cluster and wait until its nodes have booted", _up)
    up.add_argument("file", help="a topology file, or the folder with cluster.toml")
    up.add_argument("--name", help="name of the cluster (default: the folder's)")
    up.add_argument("--writable", action="append", default=[], metavar="DIR", help="let nodes write to this directory of this machine")
    enter = verb("exec", "run a command on a node, with this terminal and exit status", _exec)
    enter.add_argument("--user", help="as this user of the node (name or number)")
    enter.add_argument("--cwd", help="in this directory of the node")
    enter.add_argument("node")
    enter.add_argument("command", nargs=argparse.REMAINDER)
    status = verb("status", "nodes, links and addresses", _status)
    status.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    verb("kill", "power a node off: kill -9 of everything on it", _kill).add_argument("node")
    verb("start", "power a node on again and wait until it has booted", _start).add_argument("node")
    link = verb("link", "take a node's carrier away, or give it back", _link)
    link.add_argument("node")
    link.add_argument("carrier", choices=("down", "up"))
    link.add_argument("--link", help="only on this link")
    capture = verb("capture", "record the frames of a link until interrupted", _capture)
    capture.add_argument("link")
    capture.add_argument("file", help="a pcap file")
    down = verb("down", "stop a cluster; leaves nothing behind", _down)
    down.add_argument("name", nargs="?", help="which (default: the one that runs)")
    listing = verb("list", "the clusters of this user", _list)
    listing.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    try:
        action: Callable[[argparse.Namespace], int] = args.action
        return action(args)
    except (ClusterError, ControlError) as error:
        raise CommandError(f"{args.verb}: {error}") from error


def _up(args: argparse.Namespace) -> int:
    from qnetpy.cluster import keys, rights, topology
    from qnetpy.settings import SettingsError

    try:
        plan = keys.fit(topology.read(args.file, args.name))
    except SettingsError as error:
        raise CommandError(f"up: {error}") from error
    missing = rights.missing(fuse=any(node.spec.boot for node in plan.nodes.values()))
    if missing:
        raise CommandError(f"up: {'; '.join(missing)}")
    harness.start(plan, keys.make, writable=[os.path.abspath(path) for path in args.writable])
    print(f"cluster {plan.name} is up: {', '.join(plan.nodes)}")
    return 0


def _exec(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CommandError("exec: no command given", f"qnet cluster exec {args.node} -- ls /net", 2)
    sys.stdout.flush()
    return entry.enter(harness.the_one(args.name), {"do": "enter", "node": args.node}, command, args.user, args.cwd)


def _status(args: argparse.Namespace) -> int:
    answer, _ = control.ask(harness.the_one(args.name), {"do": "status"})
    if args.json:
        print(as_json(answer))
        return 0
    links, nodes = answer["links"], answer["nodes"]
    assert isinstance(links, dict)
    assert isinstance(nodes, dict)
    kind = "in a user namespace" if answer["user_namespace"] else "as root"
    print(f"cluster {answer['name']}, {kind}, supervisor {answer['pid']}, up for {answer['seconds']} s")
    print(table([[name, link["kind"], link["mtu"]] for name, link in links.items()], ("LINK", "KIND", "MTU")))
    rows = []
    for name, node in nodes.items():
        ports = "  ".join(
            f"{port['interface']}={port['address']} on {port['link']}{'' if port['carrier'] else ' (no carrier)'}" for port in node["ports"]
        )
        rows.append([name, node["state"], node["pid"] or "-", ports])
    print(table(rows, ("NODE", "STATE", "INIT", "INTERFACES")))
    for name, node in nodes.items():
        if node["report"]:
            print(f"{name}: {node['report']}")
    return 0


def _kill(args: argparse.Namespace) -> int:
    control.ask(harness.the_one(args.name), {"do": "kill", "node": args.node})
    return 0


def _start(args: argparse.Namespace) -> int:
    answer, _ = control.ask(harness.the_one(args.name), {"do": "start", "node": args.node})
    failed = answer["failed"]
    assert isinstance(failed, dict)
    if failed:
        raise CommandError(f"start: {args.node}: {failed[args.node]}")
    return 0


def _link(args: argparse.Namespace) -> int:
    control.ask(harness.the_one(args.name), {"do": "link", "node": args.node, "link": args.link, "up": args.carrier == "up"})
    return 0


def _capture(args: argparse.Namespace) -> int:
    from qnetpy.cluster import capture

    return capture.record(harness.the_one(args.name), args.link, args.file)


def _down(args: argparse.Namespace) -> int:
    if args.name is None:
        state.sweep()
        if not list(state.names()):
            print("no cluster is running")
            return 0
    name = args.name or os.path.basename(harness.the_one(None))
    print(f"cluster {name} is down" if harness.stop(name) else f"cluster {name} was not running")
    return 0


def _list(args: argparse.Namespace) -> int:
    state.sweep()
    found = list(state.names())
    print(as_json(found) if args.json else "\n".join(found) or "no cluster is running")
    return 0
