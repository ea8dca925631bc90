"""`qnet specific`: requests that only one kind of module of io-pkt understands, QNX's SIOCSDRVSPEC and SIOCGDRVSPEC, for any module.

qnet specific neighbours                        what it tells
qnet specific neighbours rename name=anna       a request, with its arguments
qnet specific bridge0 maxaddr value=500         the driver of an interface
qnet specific my.router route route="10.9.1.0/24 p1 02:00:00:00:01:01"

Bridges and filters have commands of their own (`qnet bridge`, `qnet macfilter`), aggregates and VLANs `qnet ifconfig`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError, as_json, facts, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--json", action="store_true", help="what the module tells as JSON, for programs; after a request, too")
    parser.add_argument("what", metavar="WHAT", help="an interface, a module, a dotted path as it was mounted, or #NUMBER")
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="REQUEST KEY=VALUE",
        help="the module's own; a value that is a number, true, false, null or other JSON is that, all else is text, and so is '\"12\"'",
    )


def run(args: argparse.Namespace) -> int:
    words = list(args.words)
    if words[-1:] == ["--json"]:
        words.pop()
        args.json = True
    request = {"command": words[0], "arguments": parsed(words[1:])} if words else {}
    told = iopkt.ask(args, "specific", module=args.what, **request)
    if args.json:
        print(as_json(told))
    elif not words:
        print(shown(told) or f"{args.what} tells nothing")
    return 0


def parsed(words: list[str]) -> dict[str, object]:
    """`key=value`s as a table. CommandError for what is none."""
    found: dict[str, object] = {}
    for word in words:
        key, is_one, text = word.partition("=")
        if not key or not is_one:
            raise CommandError(f"{word!r} is no argument: key=value is one", status=2)
        if key in found:
            raise CommandError(f"{key} is given twice", status=2)
        found[key] = _value(text)
    return found


def _value(text: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    return value


def _no_constant(name: str) -> object:
    """NaN and Infinity, which Python takes for JSON."""
    raise ValueError(name)


def shown(told: Mapping[str, object]) -> str:
    """A table of facts for people: short ones in lines, then a table for each list of rows."""
    short = {name: _short(one) for name, one in told.items() if not _is_rows(one)}
    parts = [facts(short)] if short else []
    for name, one in told.items():
        if _is_rows(one):
            rows = iopkt.listed(one)
            columns = list(dict.fromkeys(column for row in rows for column in row))
            parts.append(
                f"{name}\n" + table([[_short(row.get(column, "-")) for column in columns] for row in rows], [*map(str.upper, columns)])
            )
    return "\n\n".join(parts)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    return "-" if value is None else "yes" if value is True else "no" if value is False else str(value)
