"""`qnet top`: requests of /net that wait, oldest first, and what goes to and from each node; again every second, until Ctrl-C.

Users see their own requests, root all. Bytes written are those that programs were told are written and whose node has not said so yet.
"""

from __future__ import annotations

import argparse
import time

from qnetpy.cli import callers
from qnetpy.cli.output import CommandError, as_json, begin_picture, scaled, table, user

RATES = ("messages_sent", "messages_received", "bytes_sent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--once", action="store_true", help="one picture, without rates")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, one line each time")
    parser.add_argument("-n", dest="interval", type=float, default=1.0, metavar="SECONDS", help="between pictures (default: 1)")
    parser.add_argument("-c", dest="count", type=int, default=0, metavar="N", help="end after so many pictures")
    parser.add_argument("--slow", type=float, default=0.1, metavar="SECONDS", help="show what waits for longer than this (default: 0.1)")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    if not 0.1 <= args.interval <= 3600:
        raise CommandError(f"an interval of {args.interval:g} s is not between 0.1 and 3600", status=2)
    before: dict[str, dict[str, object]] = {}
    then = 0.0
    shown = 0
    while True:
        found, now = daemon.ask("waiting", args.config), time.monotonic()
        nodes = _nodes(found["nodes"], before, now - then)
        waiting = [one for one in callers.rows(found["requests"]) if _number(one["seconds"]) >= args.slow]
        waiting.sort(key=lambda one: -_number(one["seconds"]))
        if args.json:
            _print_json({**found, "nodes": nodes, "requests": waiting}, args.once)
        else:
            if not args.once:
                begin_picture()
            print(_picture(str(found["self"]), nodes, waiting, _number(found["left_out"])), flush=True)
        shown += 1
        if args.once or shown == args.count:
            return 0
        before, then = {str(one["node"]): one for one in nodes}, now
        time.sleep(args.interval)


def _print_json(facts: dict[str, object], once: bool) -> None:
    if once:
        print(as_json(facts))
    else:
        import json

        print(json.dumps(facts, default=str), flush=True)


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0.0


def _nodes(told: object, before: dict[str, dict[str, object]], seconds: float) -> list[dict[str, object]]:
    """With rates per second where there was an earlier picture; a link that began anew counts from zero."""
    assert isinstance(told, list)
    rows = []
    for one in told:
        old = before.get(one["node"])
        rates: dict[str, object] = {}
        for name in RATES if old is not None else ():
            assert old is not None
            gone = _number(one[name]) - _number(old[name])
            rates[f"{name}_per_second"] = round((gone if gone >= 0 else _number(one[name])) / seconds, 1)
        rows.append(one | rates)
    return rows


def _picture(own: str, nodes: list[dict[str, object]], waiting: list[callers.Row], left_out: float) -> str:
    rows: list[list[object]] = []
    for one in nodes:
        rates = [scaled(_number(one[name])) if (name := f"{what}_per_second") in one else "" for what in RATES]
        behind = f"{scaled(_number(one['unwritten']))}B in {one['files']}" if one["unwritten"] else ""
        oldest = f"{_number(one['oldest']):.1f} s" if one["waiting"] else ""
        rows.append([one["node"], one["state"], f"{_number(one['seconds']):.0f} s", *rates, one["waiting"] or "", oldest, behind])
    parts = [table(rows, ("NODE", "STATE", "SINCE", "MSG OUT/S", "IN/S", "BYTES OUT/S", "WAITING", "OLDEST", "NOT THERE YET"))]
    if not nodes:
        parts = [f"{own} has met no other node"]
    parts.append(
        table(
            [
                [
                    one["id"],
                    f"{_number(one['seconds']):.1f} s",
                    one["node"],
                    one["state"],
                    user(int(_number(one["uid"])), here=True),
                    one["pid"],
                    one["command"],
                    str(one["operation"]) + (" (signalled)" if one["signalled"] else ""),
                    str(one["mount"]) + str(one["path"]),
                ]
                for one in waiting
            ],
            ("ID", "WAITS", "FOR", "STATE", "USER", "PID", "COMMAND", "OPERATION", "PATH"),
        )
        if waiting
        else "nobody waits"
    )
    if left_out:
        parts.append(f"{left_out:.0f} more")
    return "\n\n".join(parts)
