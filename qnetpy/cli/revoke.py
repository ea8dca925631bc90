"""`qnet revoke NODE`: end a node's membership: every other node refuses its key from now on, and ends its sessions."""

from __future__ import annotations

import argparse
import sys
import time

from qnetpy.cli.output import as_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", nargs="?", help="the node; without it: who was revoked so far")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    if args.node:
        done = daemon.ask("revoke", args.config, node=args.node)
        told = f"node {args.node} is revoked; nodes that are up know it now, the others when they come back"
        if done["issues_on"]:
            print("its issuing power is not known here, so what it signs from now on counts: qnet root rotate ends that", file=sys.stderr)
        print(as_json(done) if args.json else f"{told}; if it was stolen, look at what it could read")
        return 0
    members = daemon.ask("status", args.config)["membership"]
    assert isinstance(members, dict)
    revoked = members["revoked"]
    if args.json:
        print(as_json(revoked))
    else:
        rows = [[one["node"], one["by"], time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one["time"]))] for one in revoked]
        print(table(rows, ("NODE", "BY", "AT (UTC)")) if rows else "nobody was revoked")
    return 0
