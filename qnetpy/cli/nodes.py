"""`qnet nodes`, `qnet ls`: the nodes of the cluster as this one sees them."""

from __future__ import annotations

import argparse
import time

from qnetpy.cli.output import CommandError, as_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("-l", dest="long", action="store_true", help="with the paths to each node")
    parser.add_argument("--wait", metavar="NODE,...", help="wait until all of these are up")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for --wait (default: 10)")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    wanted = set(filter(None, (args.wait or "").split(",")))
    deadline = time.monotonic() + args.timeout
    while True:
        facts = daemon.ask("nodes", args.config)
        found = facts["nodes"]
        assert isinstance(found, list)
        missing = wanted - {node["name"] for node in found if node["state"] == "up"} - {facts["self"]}
        if not missing:
            break
        if time.monotonic() >= deadline:
            raise CommandError(f"not up within {args.timeout:g} s: {', '.join(sorted(missing))}", "qnet status")
        time.sleep(0.05)
    if args.json:
        print(as_json(facts))
    else:
        print(listing(str(facts["self"]), found))
        if args.long:
            print()
            print(paths(found))
    return 0


def listing(own: str, nodes: list[dict[str, object]]) -> str:
    """The table of nodes."""
    rows: list[list[object]] = [[own, "this node", "", "", "", "", ""]]
    for node in nodes:
        link = node["link"]
        used = rtt = suite = ""
        if isinstance(link, dict):
            working = [path for path in link["paths"] if path["state"] == "usable"] or link["paths"]
            used = ", ".join(f"{path['interface']} {path['endpoint'] or path['mac']}" for path in working)
            rtt = ", ".join(f"{path['rtt'] * 1e6:.0f} us" for path in working)
            suite = str(link["suite"])
        rows.append([node["name"], node["state"], f"{node['seconds']:.0f} s", used, suite, rtt, node["reason"]])
    return table(rows, ("NODE", "STATE", "SINCE", "LINK", "CIPHER", "RTT", "WHY"))


def paths(nodes: list[dict[str, object]]) -> str:
    """The table of paths to the nodes that have a link."""
    rows: list[list[object]] = []
    for node in nodes:
        link = node["link"]
        for path in link["paths"] if isinstance(link, dict) else ():
            rows.append(
                [
                    f"{node['name']} ({node['policy']})",
                    path["path"],
                    path["interface"],
                    path["endpoint"] or path["mac"],
                    path["state"],
                    f"{path['rtt'] * 1e6:.0f} us",
                    f"{path['loss']:.2%}",
                    f"{path['rate'] / 1e6:.1f} MB/s",
                    path["mtu"],
                    path["payload"],
                    f"{path['share']:.0%}",
                ]
            )
    return table(rows, ("NODE (POLICY)", "PATH", "INTERFACE", "ADDRESS", "STATE", "RTT", "LOSS", "RATE", "MTU", "PACKET", "SHARE"))
