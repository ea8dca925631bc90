"""`qnet suites [NAME...]`: the ciphers of this node's links, or other ones from now on."""

from __future__ import annotations

import argparse

from qnetpy.cli.output import CommandError, as_json, facts, table

NAMES = ("aes-128-gcm", "aes-256-gcm", "chacha20-poly1305")


def suite(name: str) -> str:
    """A cipher's name from the command line."""
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"{name!r} is no cipher; known: {', '.join(NAMES)}")
    return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", type=suite, help=f"accept only these, best first, until the next start: {', '.join(NAMES)}"
    )
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    if len(set(args.names)) != len(args.names):
        raise CommandError("a cipher is named twice", "each once, best first")
    if args.names:
        daemon.ask("suites", args.config, names=args.names)
    found = daemon.ask("status", args.config)
    nodes = found["nodes"]
    assert isinstance(nodes, list)
    links = {node["name"]: node["link"]["suite"] for node in nodes if node["link"] is not None}
    if args.json:
        print(as_json({"suites": found["suites"], "links": links}))
        return 0
    suites = found["suites"]
    assert isinstance(suites, list)
    print(facts({"accepted": ", ".join(suites)}))
    print()
    print(table([[name, suite] for name, suite in links.items()], ("NODE", "CIPHER")))
    return 0
