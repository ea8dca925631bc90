"""`qnet pidin [-n NODE,... | --all | --where CONDITION] [PID|NAME ...]`: the processes of nodes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from qnetpy.cli import selection
from qnetpy.cli.output import as_json, shown, table

if TYPE_CHECKING:
    from qnetpy.cli.selection import Place
    from resmgr.client import Client
    from resmgr.procmgr.message import Row

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting",
    "T": "stopped",
    "t": "traced",
    "Z": "zombie",
    "X": "dead",
    "I": "idle",
}
"""Of ps, by what people call them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    selection.add_options(parser)
    parser.add_argument("-u", "--user", help="only this user's")
    parser.add_argument("--sort", choices=("pid", "cpu", "memory"), default="pid", help="(default: pid)")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("wanted", metavar="PID|NAME", nargs="*", help="only these")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    with daemon.connect(args.config) as client:
        places = selection.places(client, args)
        rows, silent = gather(client, places)
    rows = [(place, row) for place, row in rows if fits(row, args.wanted) and args.user in (None, text(row.user))]
    if args.sort != "pid":
        rows.sort(key=lambda one: -one[1].time if args.sort == "cpu" else -one[1].memory)
    if args.json:
        print(as_json([as_fact(place, row) for place, row in rows]))
    else:
        print(listing(rows, several=len(places) > 1))
    for line in silent:
        print(f"qnet pidin: {line}", file=sys.stderr)
    return 1 if silent or (args.wanted and not rows) else 0


def gather(client: Client, places: list[Place]) -> tuple[list[tuple[Place, Row]], list[str]]:
    """The processes of all, which are asked at once, and what to say of those that do not tell."""
    from resmgr.errors import ResmgrError
    from resmgr.procmgr.client import processes_of

    rows: list[tuple[Place, Row]] = []
    silent: list[str] = []
    for place, found in zip(places, processes_of(client, [place.nd for place in places]), strict=True):
        if isinstance(found, ResmgrError):
            silent.append(selection.refusal(place, found))
        else:
            rows += [(place, row) for row in found]
    return rows, silent


def fits(row: Row, wanted: list[str]) -> bool:
    """By number, by the kernel's name, or by the last part of the program's path. No *wanted*: all."""
    program = row.command.partition(b"\0")[0].rpartition(b"/")[2]
    return not wanted or str(row.pid) in wanted or text(row.name) in wanted or (bool(program) and text(program) in wanted)


def text(name: bytes) -> str:
    """For a terminal: what another machine's processes are called must not command it."""
    return shown(name)


def command(row: Row) -> str:
    """The arguments; in brackets the name of what has none (kernel threads, zombies)."""
    return text(row.command.replace(b"\0", b" ")) or f"[{text(row.name)}]"


def listing(rows: list[tuple[Place, Row]], several: bool) -> str:
    """The table; with a column for the node when there are several."""
    cells: list[list[object]] = [
        [
            *([place.name] if several else []),
            row.pid,
            row.parent,
            text(row.user),
            STATES.get(row.state, row.state),
            row.nice,
            row.threads,
            size(row.memory),
            duration(row.time),
            command(row),
        ]
        for place, row in rows
    ]
    return table(cells, (*(["NODE"] if several else []), "PID", "PPID", "USER", "STATE", "NICE", "THREADS", "MEMORY", "TIME", "COMMAND"))


def size(count: int) -> str:
    """Bytes in three or four figures."""
    value, unit = float(count), 0
    while value >= 1000 and unit < 4:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f}{' KMGT'[unit]}".rstrip() if value >= 10 or not unit else f"{value:.1f}{' KMGT'[unit]}"


def duration(seconds: float) -> str:
    """Processor time as ps says it, with hundredths."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def as_fact(place: Place, row: Row) -> dict[str, object]:
    """For JSON."""
    return {
        "node": place.name,
        "pid": row.pid,
        "parent": row.parent,
        "uid": row.uid,
        "user": text(row.user),
        "state": STATES.get(row.state, row.state),
        "nice": row.nice,
        "threads": row.threads,
        "memory": row.memory,
        "cpu_seconds": row.time,
        "name": text(row.name),
        "arguments": [text(word) for word in row.command.split(b"\0")] if row.command else [],
    }
