"""`qnet ls`: the nodes, as `qnet nodes`; with `-m` who serves what of this node's pathname space, or of another's."""

from __future__ import annotations

import argparse

from qnetpy.cli import nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nodes.add_arguments(parser)
    parser.add_argument("-m", dest="managers", nargs="?", const="", metavar="NODE", help="resource managers: of this node, or of NODE")


def run(args: argparse.Namespace) -> int:
    if args.managers is None:
        return nodes.run(args)
    from qnetpy.cli import managers

    return managers.run(args.managers, args.config, args.json)
