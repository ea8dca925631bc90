"""`qnet slay [-s SIGNAL] [-n NODE,... | --all | --where CONDITION] PID|NAME...`: signal processes of nodes, by number or by name.

Nothing is asked, with or without QNX's `-f`; every process that was signalled, and every one that could not be, is a line. What is
signalled is what was listed: a number that meanwhile means another process is left alone. Exit status 0 when something was signalled and
nothing refused, else 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING

from qnetpy.cli import pidin, selection
from qnetpy.cli.output import CommandError, as_json, shown

if TYPE_CHECKING:
    from qnetpy.cli.selection import Place
    from resmgr.client import Client
    from resmgr.procmgr.message import Row

NUMBER_MAX = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    selection.add_options(parser)
    parser.add_argument("-s", "--signal", default="TERM", metavar="SIGNAL", help="name or number (default: TERM); -9 or -KILL for short")
    for number in range(1, NUMBER_MAX + 1):
        names = [f"-{name[3:]}" for name, one in signal.Signals.__members__.items() if one == number]
        words = [f"-{number}", *names, *(f"-SIG{name[1:]}" for name in names)]
        parser.add_argument(*words, dest="signal", action="store_const", const=str(number), help=argparse.SUPPRESS)
    parser.add_argument("-f", dest="force", action="store_true", help="as in QNX, where nothing is asked then; here nothing ever is")
    parser.add_argument("-u", "--user", help="only this user's processes")
    parser.add_argument("--json", action="store_true", help="what was done, as JSON, for programs")
    parser.add_argument("wanted", metavar="PID|NAME", nargs="+", help="a process, or all of that name")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    wanted: list[str] = args.wanted
    number = _signal(args.signal)
    if not wanted or any(word.isdecimal() and int(word) < 1 for word in wanted):
        raise CommandError("a process id or a name is needed", "qnet slay NAME", 2)
    with daemon.connect(args.config) as client:
        rows, silent = pidin.gather(client, selection.places(client, args))
        hits = [(place, row) for place, row in rows if pidin.fits(row, wanted) and args.user in (None, pidin.text(row.user))]
        done = [(place, row, _slay(client, place, row, number)) for place, row in hits]
    if args.json:
        print(as_json([pidin.as_fact(place, row) | {"signal": _name(number), "error": why or None} for place, row, why in done]))
    for place, row, why in done:
        told = f"{place.name}: {row.pid} {pidin.text(row.name)} ({pidin.text(row.user)})"
        if why:
            print(f"qnet slay: {told}: {why}", file=sys.stderr)
        elif not args.json:
            print(f"{told}: {_name(number)}")
    for line in silent:
        print(f"qnet slay: {line}", file=sys.stderr)
    missed = [word for word in wanted if not any(pidin.fits(row, [word]) for _, row in hits)]
    for word in missed:
        print(f"qnet slay: there is no process {shown(word)}", file=sys.stderr)
    return 1 if missed or silent or any(why for *_, why in done) else 0


def _slay(client: Client, place: Place, row: Row, number: int) -> str:
    """Why not, or nothing."""
    import errno

    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import kill

    try:
        kill(client, place.nd, row.pid, number, row.began)
    except ResmgrError as error:
        if error.errno == errno.ESRCH:
            return "it had ended"
        return "not yours" if error.errno == errno.EPERM else (error.strerror or str(error)).lower()
    return ""


def _signal(word: str) -> int:
    if word.isdecimal():
        if int(word) <= NUMBER_MAX:
            return int(word)
    else:
        name = word.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name in signal.Signals.__members__:
            return signal.Signals[name]
    raise CommandError(f"{word!r} is no signal", "qnet slay -s TERM, or kill -l for their names", 2)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
