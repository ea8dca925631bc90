"""`qnet describe [NODE/]NAME`, `qnet describe /net/NODE/PATH`: the messages that a server understands, as its classes declare them. With -g
an owner of a global name: `NAME`, `NAME@NODE`.

Servers of typed messages (docs/howto/messages.md) answer by themselves; what is read and written like a file has no such messages. Loads
neither Trio nor the stack.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qnetpy.cli.output import CommandError, as_json, shown

if TYPE_CHECKING:
    from resmgr.typed.description import Description, Fields

SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="[NODE/]NAME|/PATH", help="the server's name, with the node it is on; or its path")
    parser.add_argument("-g", "--global", dest="everywhere", action="store_true", help="an owner of a global name: NAME, NAME@NODE")
    parser.add_argument("--timeout", type=float, default=SECONDS, metavar="SECONDS", help=f"give up after this long (default: {SECONDS:g})")
    parser.add_argument("--json", action="store_true", help="the same as JSON, for programs")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli.server import opened
    from resmgr.errors import ResmgrError
    from resmgr.typed.client import describe

    with opened(args.to, config=args.config, everywhere=args.everywhere, timeout=args.timeout, command="describe") as connection:
        try:
            told = describe(connection, timeout=args.timeout)
        except ResmgrError as error:
            _refused(args.to, error)
    if args.json:
        rows = None if told.requests is None else [row._asdict() for row in told.requests]
        print(as_json({"name": told.name, "version": told.version, "id": told.id, "requests": rows}))
    else:
        print(page(told))
    return 0


def _refused(name: str, error: OSError) -> None:
    import errno

    if error.errno in (errno.EBADMSG, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise CommandError(f"{name} tells of no typed messages", "ls, cat or stat, if it is read and written like a file") from error
    raise CommandError(f"{name}: {(error.strerror or str(error)).lower()}") from error


def page(told: Description) -> str:
    """For people."""
    lines = [f"{shown(told.name)}, version {told.version}"]
    if told.requests is None:
        lines.append("it does not tell which messages: its program is older than this command")
    for one in told.requests or ():
        lines += ["", f"{one.number}: {shown(one.name)}"]
        lines += [f"    {shown(line)}".rstrip() for line in one.about.splitlines()]
        lines += _fields(one.fields)
        lines.append("  answered with nothing" if one.reply is None else f"  answered with {shown(one.reply)}")
        lines += _fields(one.reply_fields)
    return "\n".join(lines)


def _fields(fields: Fields) -> list[str]:
    width = max((len(shown(name)) for name, _ in fields), default=0)
    return [f"    {shown(name):{width}}  {shown(kind)}" for name, kind in fields]
