"""`qnet send [NODE/]NAME [TEXT]`: send a message to a named server, at home or on another node, and print what it replies. With -g to an
owner of a global name: `NAME`, `NAME@NODE`, `NAME~roundrobin`, `NAME~leastload`.

The text is the message, byte for byte; without it standard input is. Exit status 0 when the server replied, whatever it replied.
"""

from __future__ import annotations

import argparse
import sys

from qnetpy.cli.output import CommandError, as_json

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
    from qnetpy.cli import choice
    from qnetpy.cli.server import opened
    from resmgr.errors import ResmgrError

    message = args.text.encode(errors="surrogateescape") if args.text is not None else sys.stdin.buffer.read()
    with opened(
        args.to, config=args.config, everywhere=args.everywhere, timeout=args.timeout, command="send", wait=args.wait
    ) as connection:
        try:
            reply = connection.send(message, reply_len=args.reply_len, timeout=args.timeout)
        except ResmgrError as error:
            choice.explain(args.to.rpartition("/")[0], error)
            raise CommandError(f"{args.to}: {(error.strerror or str(error)).lower()}") from error
    data = bytes(reply.data)
    if args.json:
        print(as_json({"status": reply.status, "reply": data.decode(errors="replace")}))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data if data.endswith(b"\n") or not sys.stdout.isatty() else data + b"\n")
        sys.stdout.buffer.flush()
    return 0
