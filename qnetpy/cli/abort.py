"""`qnet abort ID... | --pid P | --node N`: end requests of /net that wait.

The programs get EHOSTDOWN, or ECANCELED from this node's managers. What the other
node makes of a request that was ended is not known: it may have been carried out. Exit status 0 when something was ended.
"""

from __future__ import annotations

import argparse
import sys

from qnetpy.cli import callers
from qnetpy.cli.output import CommandError, as_json

AT_ONCE = 200
"""Ids in one message."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="what was ended, as JSON, for programs")
    parser.add_argument("--pid", type=int, action="append", default=[], metavar="P", help="all requests of this process, or of one thread")
    parser.add_argument("--node", action="append", default=[], metavar="NODE", help="all requests that wait for this node")
    parser.add_argument("ids", nargs="*", metavar="ID", help="as `qnet top` shows them")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    if not (args.ids or args.pid or args.node):
        raise CommandError("an ID, --pid or --node is needed", "qnet top --once", 2)
    ids: dict[str, None] = dict.fromkeys(args.ids)
    if args.pid or args.node:
        for one in callers.rows(daemon.ask("waiting", args.config)["requests"]):
            if {one["pid"], one["thread"]} & set(args.pid) or one["node"] in args.node:
                ids[str(one["id"])] = None
    ended: list[object] = []
    unknown: list[object] = []
    wanted = list(ids)
    for start in range(0, len(wanted), AT_ONCE):
        answer = daemon.ask("abort", args.config, ids=wanted[start : start + AT_ONCE])
        for into, name in (ended, "aborted"), (unknown, "unknown"):
            told = answer[name]
            assert isinstance(told, list)
            into += told
    if args.json:
        print(as_json({"aborted": ended, "unknown": unknown}))
    else:
        print(f"{len(ended)} ended" if ended else "nothing waited")
    for ident in unknown:
        if ident in args.ids:
            print(f"qnet abort: {ident}: no request of yours waits by that number; try: qnet top --once", file=sys.stderr)
    return 0 if ended else 1
