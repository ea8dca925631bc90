"""`qnet send [NODE/]NAME [TEXT]`: send a message to a named server, at home or on another node, and print what it replies. With -g to an
owner of a global name: `NAME`, `NAME@NODE`, `NAME~roundrobin`, `NAME~leastload`.

The text is the message, byte for byte; without it standard input is. Exit status 0 when the server replied, whatever it replied.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Literal

from qnetpy.cli.output import CommandError, as_json

if TYPE_CHECKING:
    from resmgr.client import Client

REPLY_LEN = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="[NODE/]NAME", help="the server's name, with the node it is on")
    parser.add_argument("-g", "--global", dest="everywhere", action="store_true", help="an owner of a global name: NAME, NAME@NODE")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the name to be attached (default: 0)")
    parser.add_argument("text", nargs="?", help="the message (default: standard input)")
    parser.add_argument("--reply-len", type=int, default=REPLY_LEN, metavar="BYTES", help="size of the reply buffer (default: 1 MiB)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long (default: wait for the server)")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="status and reply as JSON")


def run(args: argparse.Namespace) -> int:
    import errno

    from qnetpy.cli import choice, daemon
    from resmgr.errors import ResmgrError
    from resmgr.names.client import name_open

    # A name without a slash is found at home; with one, what stands before it is a node; a path from / is taken as it is.
    node, _, name = args.to.rpartition("/") if not args.to.startswith("/") else ("", "", args.to)
    if not name:
        raise CommandError(f"{args.to!r} is no server's name", "qnet send NODE/NAME, or NAME for one on this node", 2)
    if args.everywhere and node:
        raise CommandError("a global name has no node before it", f"qnet send -g {name}@{node}", 2)
    choice.check(node)
    message = args.text.encode(errors="surrogateescape") if args.text is not None else sys.stdin.buffer.read()
    with daemon.connect(args.config) as client:
        try:
            scope: Literal["local", "global"] = "global" if args.everywhere else "local"
            connection = name_open(client, name, node=node, scope=scope, timeout=args.timeout, wait=args.wait)
            reply = connection.send(message, reply_len=args.reply_len, timeout=args.timeout)
        except ResmgrError as error:
            choice.explain(node, error)
            where = f" on node {node}" if node else ""
            if error.errno == errno.ENOENT and node and not _is_up(client, node):
                raise CommandError(f"no node {node} is up", "qnet ls") from error
            if error.errno == errno.ENOENT and args.everywhere:
                raise CommandError(f"no node that is up has the global name {name!r}", "qnet name, which lists them") from error
            if error.errno == errno.ENOENT:
                raise CommandError(f"nobody has attached the name {name!r}{where}", "qnet name, there, which lists them") from error
            raise CommandError(f"{args.to}: {(error.strerror or str(error)).lower()}") from error
    data = bytes(reply.data)
    if args.json:
        print(as_json({"status": reply.status, "reply": data.decode(errors="replace")}))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data if data.endswith(b"\n") or not sys.stdout.isatty() else data + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _is_up(client: Client, node: str) -> bool:
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import node_descriptor

    try:
        node_descriptor(client, node)
    except ResmgrError:
        return False
    return True
