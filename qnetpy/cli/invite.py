"""`qnet invite`: let a machine join the cluster by a code, and wait until it did."""

from __future__ import annotations

import argparse
import re
import time

from qnetpy.cli.output import CommandError, as_json, table

POLL_SECONDS = 0.2
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> int:
    """`90`, `90s`, `10m`, `2h` as seconds."""
    match = re.fullmatch(r"(\d+)([smh]?)", text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 10m, 2h")
    return int(match[1]) * _UNITS[match[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="the node's name (default: the host name of the machine that joins)")
    parser.add_argument("--role", action="append", default=[], help="a role of the node; may be repeated")
    parser.add_argument("--uses", type=int, default=1, metavar="K", help="how many machines may join with this code (default: 1)")
    parser.add_argument("--ttl", type=seconds, default=600, metavar="TIME", help="how long the code is good: 90s, 10m, 2h (default: 10m)")
    parser.add_argument("--days", type=float, help="how long the certificates are valid (default: a year)")
    parser.add_argument("--no-wait", action="store_true", help="only print the code; do not stay to say who joined")
    parser.add_argument("--list", action="store_true", help="the invitations of now, without their codes")
    parser.add_argument("--cancel", metavar="PUBLIC", help="end the invitation whose code begins with these three characters")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="implies --no-wait")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    if args.list:
        return _list(args)
    if args.cancel:
        daemon.ask("uninvite", args.config, public=args.cancel)
        print(as_json({"cancelled": args.cancel}) if args.json else f"invitation {args.cancel} is over")
        return 0
    found = daemon.ask("invite", args.config, name=args.name, roles=args.role, uses=args.uses, ttl=args.ttl, days=args.days)
    if args.json:
        print(as_json(found))
        return 0
    where = "" if found["announced"] else " ADDRESS"
    print(f"code: {found['code']}")
    print(f"on the other machine: qnet join {found['code']}{where}")
    print(f"(from another network: qnet join {found['code']} ADDRESS:{found['port']})")
    left = found["seconds_left"]
    assert isinstance(left, int)
    print(f"good for {left // 60} min {left % 60} s, {args.uses} machine(s), and until the third wrong try", flush=True)
    return 0 if args.no_wait else _wait(args, str(found["public"]))


def _wait(args: argparse.Namespace, public: str) -> int:
    """Say what happens to the invitation until it is over. 0: everybody came."""
    wrong = 0
    granted: set[str] = set()
    joined: set[str] = set()
    while True:
        one = next((one for one in _invitations(args) if one["public"] == public), None)
        if one is None:
            raise CommandError("the time is over" if not granted else "the time is over, and not every machine came", "qnet invite")
        sources, left = one["wrong_from"], one["tries_left"]
        assert isinstance(sources, list)
        for source in sources[wrong:]:
            wrong += 1
            print(f"wrong code from {source}; {left} tries left" if left else f"wrong code from {source}", flush=True)
        for name in _new(one["granted"], granted):
            print(f"node {name} has its certificate", flush=True)
        for name in _new(one["joined"], joined):
            print(f"node {name} joined; start it there with: qnet up", flush=True)
        if one["state"] == "killed":
            raise CommandError("three wrong tries: the invitation is over, somebody may be guessing", "qnet invite")
        if one["state"] == "cancelled":
            raise CommandError("the invitation was cancelled")
        if one["state"] == "used" and joined == granted:
            return 0
        time.sleep(POLL_SECONDS)


def _new(names: object, known: set[str]) -> list[str]:
    assert isinstance(names, list)
    fresh = [name for name in names if name not in known]
    known.update(fresh)
    return fresh


def _invitations(args: argparse.Namespace) -> list[dict[str, object]]:
    from qnetpy.cli import daemon

    found = daemon.ask("invitations", args.config)["invitations"]
    assert isinstance(found, list)
    return found


def _list(args: argparse.Namespace) -> int:
    found = _invitations(args)
    if args.json:
        print(as_json(found))
        return 0
    rows = [
        [one["public"], one["state"], one["name"] or "-", one["uses_left"], one["tries_left"], f"{one['seconds_left']} s"] for one in found
    ]
    print(table(rows, ("CODE", "STATE", "NAME", "USES", "TRIES", "ENDS")) if rows else "no invitations")
    return 0
