"""`qnet nodes`, `qnet ls`: the nodes of the cluster as this one sees them."""

from __future__ import annotations

import argparse
import time

from qnetpy.cli.output import CommandError, as_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")
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
    return 0


def listing(own: str, nodes: list[dict[str, object]]) -> str:
    """The table of nodes."""
    rows: list[list[object]] = [[own, "this node", "", "", "", ""]]
    for node in nodes:
        link = node["link"]
        interface = rtt = ""
        if isinstance(link, dict):
            interface = f"{link['interface']} {link['endpoint'] or link['mac']}"
            rtt = ", ".join(f"{path['rtt'] * 1e6:.0f} us" for path in link["paths"])
        rows.append([node["name"], node["state"], f"{node['seconds']:.0f} s", interface, rtt, node["reason"]])
    return table(rows, ("NODE", "STATE", "SINCE", "LINK", "RTT", "WHY"))
