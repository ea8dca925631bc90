"""`qnet sin [info|net]`: system information. Of processes memory and processor time, or of nodes what they are and how busy."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from qnetpy.cli import pidin, selection
from qnetpy.cli.output import as_json, table

if TYPE_CHECKING:
    from qnetpy.cli.selection import Report
    from resmgr.client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=("processes", "info", "net"),
        default="processes",
        help="processes (default): memory and processor time of each; info: of the node itself; net: of every node that is up",
    )
    selection.add_options(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    with daemon.connect(args.config) as client:
        if args.what == "processes":
            return _processes(client, args)
        if args.what == "net" and not args.node and not args.where:
            args.all = True
        found = selection.reports(client, selection.places(client, args))
    return _nodes(found, args.json)


def _processes(client: Client, args: argparse.Namespace) -> int:
    places = selection.places(client, args)
    rows, silent = pidin.gather(client, places)
    if args.json:
        print(as_json([pidin.as_fact(place, row) for place, row in rows]))
    else:
        several = len(places) > 1
        cells: list[list[object]] = [
            [*([place.name] if several else []), row.pid, pidin.size(row.memory), pidin.duration(row.time), pidin.text(row.name)]
            for place, row in rows
        ]
        print(table(cells, (*(["NODE"] if several else []), "PID", "MEMORY", "CPUUSE", "NAME")))
        memory, seconds = sum(row.memory for _, row in rows), sum(row.time for _, row in rows)
        print(f"\n{len(rows)} processes, {pidin.size(memory)} resident, {pidin.duration(seconds)} of processor time")
    return _tell(silent)


def _nodes(found: list[Report], json: bool) -> int:
    from resmgr.procmgr.nodefacts import NodeFacts

    silent = [selection.refusal(one.place, one.facts) for one in found if not isinstance(one.facts, NodeFacts)]
    told = [(one.place, one.facts) for one in found if isinstance(one.facts, NodeFacts)]
    if json:
        print(as_json([{"node": place.name, "roles": sorted(place.roles), **facts._asdict()} for place, facts in told]))
    else:
        cells: list[list[object]] = [
            [
                place.name,
                facts.cpus,
                f"{facts.load:.2f}",
                pidin.size(facts.memory),
                pidin.size(facts.free),
                facts.processes,
                _days(facts.uptime),
                facts.arch,
                f"{facts.os} {facts.release}",
                ",".join(sorted(place.roles)),
            ]
            for place, facts in told
        ]
        print(table(cells, ("NODE", "CPUS", "LOAD", "MEMORY", "FREE", "PROCESSES", "UP", "ARCH", "SYSTEM", "ROLES")))
    return _tell(silent)


def _tell(silent: list[str]) -> int:
    for line in silent:
        print(f"qnet sin: {line}", file=sys.stderr)
    return 1 if silent else 0


def _days(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    return f"{days}d {rest // 3600:02}:{rest // 60 % 60:02}"
