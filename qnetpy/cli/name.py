"""`qnet name`: the names of servers, of this node and of all, and their owners. `qnet name NAME`: be such a server, for trials.

Loads neither Trio nor the stack.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
import time
from typing import TYPE_CHECKING

from qnetpy.cli.output import CommandError, as_json, shown, table, user

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resmgr.client import Client
    from resmgr.names.protocol import NameEvent, Record
    from resmgr.server import Message

MESSAGE_MAX = 1 << 20
"""Longer messages are answered with their first part: the answer has to fit the sender's buffer anyway."""
STATUS_MAX = 1 << 20
READ_SECONDS = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="the name to attach; without one, names are listed")
    parser.add_argument("-g", "--global", dest="everywhere", action="store_true", help="attach it for all nodes; others may own it, too")
    parser.add_argument("--local", action="store_true", help="take no messages from other nodes; or list local names only")
    parser.add_argument("--lease", type=int, default=0, metavar="SECONDS", help="attach for so long; renewed while messages are answered")
    parser.add_argument("--list", action="store_true", help="list names, which is what happens without NAME")
    parser.add_argument("--watch", action="store_true", help="then print each that appears or is withdrawn, until interrupted")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs; with --watch one object a line")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from resmgr.errors import ResmgrError

    listing = args.list or args.watch or args.json or args.name is None
    if listing and (args.everywhere or args.lease):
        raise CommandError("-g and --lease are for a name that is attached", "qnet name -g NAME", 2)
    if args.everywhere and args.local:
        raise CommandError("a name for all nodes must take messages from them", f"qnet name -g {args.name}", 2)
    with daemon.connect(args.config) as client:
        try:
            if listing:
                return _list(client, args)
            return _serve(client, args)
        except ResmgrError as error:
            raise CommandError(f"the daemon is gone: {(error.strerror or str(error)).lower()}", "qnet up") from error


# ---- listing


def _list(client: Client, args: argparse.Namespace) -> int:
    from resmgr.names.client import name_events
    from resmgr.names.protocol import NameChange

    with name_events(client, args.name or "*", scope="local" if args.local else "both") as events:
        records: dict[Record, None] = {}
        rest: list[NameEvent] = []
        current = False
        while not current:
            got = events.read(READ_SECONDS)
            if not got:
                raise CommandError("the daemon does not say what there is", "qnet down, then qnet up")
            for event in got:
                if current:
                    rest.append(event)
                elif event.kind is NameChange.CURRENT:
                    current = True
                else:
                    _apply(records, event)
        if not args.watch:
            print(as_json(_facts(client, records)) if args.json else _table(client, records))
            return 0
        for record in _sorted(client, records):
            _say(client, NameChange.APPEARED, record, args.json)
        _follow(client, rest, args.json)
        while True:
            _follow(client, events.read(), args.json)


def _apply(records: dict[Record, None], event: NameEvent) -> None:
    from resmgr.names.protocol import NameChange

    if event.kind is NameChange.APPEARED:
        records[event.record] = None
    elif event.kind is NameChange.WITHDRAWN:
        records.pop(event.record, None)
    else:
        records.clear()


def _sorted(client: Client, records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda one: (one.scope, one.name, one.node or client.node, one.serial))


def _table(client: Client, records: Iterable[Record]) -> str:
    rows = [
        [
            _text(one),
            one.scope.name.lower() if one.scope.name else "",
            one.node or f"{client.node} (this node)",
            one.pid,
            one.chid,
            user(one.uid, not one.node),
        ]
        for one in _sorted(client, records)
    ]
    return table(rows, ("NAME", "SCOPE", "NODE", "PID", "CHANNEL", "USER")) if rows else "no names are attached"


def _text(record: Record) -> str:
    return record.name.decode(errors="backslashreplace")


def _fact(client: Client, record: Record) -> dict[str, object]:
    return {
        "name": _text(record),
        "scope": record.scope.name.lower() if record.scope.name else "",
        "node": record.node or client.node,
        "nd": record.nd,
        "pid": record.pid,
        "chid": record.chid,
        "uid": record.uid,
        "serial": record.serial,
    }


def _facts(client: Client, records: Iterable[Record]) -> dict[str, object]:
    from resmgr.ids import CHID_NAMES, ND_LOCAL, PID_SYSTEM
    from resmgr.names.protocol import REQUEST, STATUS

    reply = client.connect(ND_LOCAL, PID_SYSTEM, CHID_NAMES).send(REQUEST.pack(STATUS, 0, 0), reply_len=STATUS_MAX, timeout=READ_SECONDS)
    return {"names": [_fact(client, one) for one in _sorted(client, records)], "replica": json.loads(bytes(reply.data))}


def _follow(client: Client, events: Iterable[NameEvent], as_objects: bool) -> None:
    for event in events:
        _say(client, event.kind, event.record, as_objects)


def _say(client: Client, kind: int, record: Record, as_objects: bool) -> None:
    from resmgr.names.protocol import NameChange

    change = NameChange(kind)
    told = change in (NameChange.APPEARED, NameChange.WITHDRAWN)
    if as_objects:
        fact = {"event": change.name.lower(), "time": time.time(), **(_fact(client, record) if told else {})}
        print(json.dumps(fact), flush=True)
    elif told:
        scope = record.scope.name.lower() if record.scope.name else ""
        where = record.node or client.node
        print(f"{change.name.lower()} {shown(record.name)} ({scope}) of process {record.pid} on {shown(where)}", flush=True)
    elif change is NameChange.OVERFLOW:
        print("too much happened at once; all that there is now:", flush=True)


# ---- being a server


def _serve(client: Client, args: argparse.Namespace) -> int:
    from resmgr.errors import ResmgrError
    from resmgr.names.client import name_attach
    from resmgr.server import Message

    try:
        server = name_attach(client, args.name, scope="global" if args.everywhere else "local", lease=args.lease, remote=not args.local)
    except ResmgrError as error:
        if error.errno == errno.EPERM:
            if args.everywhere:
                raise CommandError(
                    "this user may not attach global names here, or not this one",
                    "[access.announce] and [[access.names]] in the configuration",
                ) from error
            raise CommandError(f"{args.name!r} is reserved for others here", "[[access.names]] in the configuration") from error
        raise CommandError(f"{args.name!r}: {(error.strerror or str(error)).lower()}") from error
    print(f"attached {args.name!r} on node {client.node}; answering until interrupted", flush=True)
    while True:
        message = server.channel.receive(args.lease / 2 if args.lease else None)
        if isinstance(message, Message):
            _answer(message, client.node)
        if args.lease:
            server.renew()


def _answer(message: Message, node: str) -> None:
    from resmgr.errors import ResmgrError

    sender = f"user {message.info.uid} of node {message.info.node or node}"
    try:
        data = bytes(message.read(0, MESSAGE_MAX))
    except ResmgrError:
        # The sender gave up while its message was being fetched.
        message.error(errno.ESRCH)
        return
    print(f"{sender}: {message.msglen} bytes", file=sys.stderr, flush=True)
    message.reply(0, f"{node} got {message.msglen} bytes from {sender}: ".encode() + data + b"\n")
