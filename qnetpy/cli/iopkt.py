"""Finding an io-pkt of this machine, and asking it. For mount, umount, nicinfo, ifconfig, netstat, bridge, macfilter and crypto.

`io-pkt` is this node's daemon if it runs, else the instance 0 that was started by hand; `io-pktN` is instance N. An ordinary user's own
instance comes before root's, which tells him everything and lets him change nothing; a line on standard error says whose it is when it
is not his. As in QNX, $SOCK names an instance by its prefix: `SOCK=/alt qnet ifconfig`.
"""

from __future__ import annotations

import argparse
import errno
import os
import re

from qnetpy.cli import daemon
from qnetpy.cli.output import CommandError

ASK_SECONDS = 30.0
"""Loading imports code, opens devices and reads files."""
INSTANCES = 100
_TYPE = re.compile(r"io-pkt(?P<number>[0-9]{0,2})(?:-v[46](?:-hc)?)?")


def add_place(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """What all of them take. *again*: below a parser that takes it too."""

    def option(*names: str, metavar: str, dest: str = "", help: str) -> None:
        default = argparse.SUPPRESS if again else None if dest == "config" else ""
        parser.add_argument(*names, dest=dest, default=default, metavar=metavar, help=help)

    option("-T", dest="type", metavar="io-pkt[N]", help="which instance; default: this node's daemon, or io-pkt0")
    option("-n", dest="node", metavar="NODE", help="of that node; it must let this one administer it")
    option("--run-dir", dest="run_dir", metavar="DIR", help="the instance with this run directory")
    option("--config", dest="config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")


def ask(args: argparse.Namespace, verb: str, **arguments: object) -> dict[str, object]:
    """Facts from io-pkt, or what it did. CommandError when it is not there or cannot do it."""
    return ask_at(_socket(args), verb, args.node, **arguments)


def ask_at(path: str, verb: str, node: str = "", **arguments: object) -> dict[str, object]:
    """The same of the io-pkt that listens at *path*, or by way of it of *node*'s."""
    from resmgr.client import Client
    from resmgr.errors import ResmgrError
    from resmgr.ids import ND_LOCAL, PID_SYSTEM
    from resmgr.procmgr.client import node_descriptor
    from stack.managers.protocol import CHID_STACK, REPLY_MAX, pack_request, unpack_reply

    where = f"io-pkt of node {node}" if node else f"io-pkt at {path}"
    daemon.check_place(os.path.dirname(path))
    try:
        with Client(path) as client:
            connection = client.connect(node_descriptor(client, node) if node else ND_LOCAL, PID_SYSTEM, CHID_STACK)
            reply = connection.send(pack_request(verb, **arguments), reply_len=REPLY_MAX, timeout=ASK_SECONDS)
        if len(reply.data) >= REPLY_MAX:
            raise CommandError(f"{where} answers with more than {REPLY_MAX} bytes, which nobody takes")
        found = unpack_reply(bytes(reply.data))
    except ResmgrError as error:
        hint = "" if node else _stopped(path)
        raise CommandError(f"{where} does not answer: {(error.strerror or str(error)).lower()}", hint) from error
    except ValueError as error:
        raise CommandError(f"{where} is of another version: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            raise CommandError(f"no io-pkt listens at {path}", "qnet up, or io-pkt -d packet ifname=IF") from error
        raise CommandError(f"{path}: {(error.strerror or str(error)).lower()}", _stopped(path)) from error
    if isinstance(found.get("error"), str):
        number = found.get("errno")
        name = errno.errorcode.get(number, "") if isinstance(number, int) else ""
        raise CommandError(f"{found['error']}" + (f" ({name})" if name else ""))
    return found


def _stopped(path: str) -> str:
    """How to have the process go on that should answer at *path*; empty when it is not stopped."""
    try:
        with open(os.path.join(os.path.dirname(path), "lock"), "rb") as lock:
            number = int(lock.read(20))
        with open(f"/proc/{number}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return ""
    return f"process {number} is stopped: kill -CONT {number}" if state in (b"T", b"t") else ""


def _socket(args: argparse.Namespace) -> str:
    from stack.rundir import SOCKET

    if args.run_dir and args.type:
        raise CommandError(f"-T {args.type} and --run-dir {args.run_dir} both say which io-pkt: give one of them", status=2)
    if args.run_dir:
        return os.path.join(args.run_dir, SOCKET)
    prefix = os.environ.get("SOCK", "")
    if prefix and not args.type:
        return _with_prefix(prefix.rstrip("/"), args.config)
    match = _TYPE.fullmatch(args.type or "io-pkt")
    if match is None:
        raise CommandError(f"-T {args.type}: expected io-pkt or io-pktN", status=2)
    places = _places(int(match["number"] or 0), args.config)
    for number, path in enumerate(places):
        if _listens(path):
            if number:
                _say_whose(path)
            return path
    return places[0]


def _places(number: int, config: str | None) -> list[str]:
    """Sockets at which an instance may listen, the nearest first."""
    from stack.rundir import SOCKET, default_run_dir, root_run_dir

    own = [os.path.join(place, SOCKET) for place in (default_run_dir(number), root_run_dir(number))]
    return list(dict.fromkeys(own if number else [daemon.socket_path(config), *own]))


def _listens(path: str) -> bool:
    import socket

    if not os.path.exists(path):
        return False
    daemon.check_place(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(daemon.ASK_SECONDS)
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def _say_whose(path: str) -> None:
    """On standard error, so that what programs read stays as it is."""
    import pwd
    import sys

    owner = os.stat(path).st_uid
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"user {owner}"
    print(f"asking io-pkt of {name}, at {path}", file=sys.stderr)


def _with_prefix(prefix: str, config: str | None) -> str:
    """The socket of the instance with that prefix."""
    places = dict.fromkeys(path for number in range(INSTANCES) for path in _places(number, config))
    for path in filter(os.path.exists, places):
        try:
            if ask_at(path, "facts").get("prefix") == prefix:
                return path
        except CommandError:
            continue  # not running any more, or of another version
    raise CommandError(f"no io-pkt of this machine has the prefix {prefix!r}, which $SOCK asks for", "unset SOCK, or -T io-pktN")


def listed(value: object) -> list[dict[str, object]]:
    """A list of tables, of an answer; what is none of that is left out."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def numbers(value: object) -> dict[str, int]:
    """A table of counters, of an answer."""
    return {str(name): count for name, count in value.items() if isinstance(count, int)} if isinstance(value, dict) else {}


def counted(value: object) -> str:
    """`link_down 3, no_protocol 1`, or nothing."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(numbers(value).items()) if count)


def number(value: object) -> int:
    return value if isinstance(value, int) else 0


def interfaces_of(found: dict[str, object], name: str = "") -> list[dict[str, object]]:
    """The interfaces of an answer, or the one that is called *name*. CommandError when there is none such."""
    every = listed(found.get("interfaces"))
    chosen = [one for one in every if name in ("", one.get("name"))]
    if name and not chosen:
        there = ", ".join(str(one.get("name")) for one in every) or "none"
        raise CommandError(f"{found.get('name')} has no interface {name}; there is: {there}")
    return chosen
