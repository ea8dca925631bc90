"""`qnet root`: the cluster's root: which there are, make another without an outage, retire the older."""

from __future__ import annotations

import argparse
import time

from qnetpy.cli.output import as_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in (
        ("status", "the roots, and which nodes have no certificate under the newest yet"),
        ("rotate", "make another root; it takes over when every node has a certificate under it; needs the root key on this machine"),
        ("retire", "end the old root now; nodes without a certificate under the new one have to join again"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--config", metavar="FILE")
        verb.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    found = daemon.ask("root", args.config, action=args.verb)
    if args.json:
        print(as_json(found))
        return 0
    roots, lacking = found["roots"], found["lacking"]
    assert isinstance(roots, list)
    assert isinstance(lacking, list)
    if args.verb == "rotate":
        print("two roots count now; the old one is retired by itself when every node has a certificate under the new one")
    if args.verb == "retire":
        print("the old root is retired")
    rows = [
        [one["key_id"][:16], time.strftime("%Y-%m-%d", time.gmtime(one["not_after"])), "yes" if one["own"] else "not yet"] for one in roots
    ]
    print(table(rows, ("ROOT", "VALID UNTIL", "THIS NODE HAS A CERTIFICATE")))
    if lacking:
        print(f"waiting for: {', '.join(lacking)}")
    return 0
