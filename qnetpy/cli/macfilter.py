"""`qnet macfilter`: the rules of io-pkt's address filter, as brconfig(8) of OpenBSD has them.

qnet macfilter                                               the rules, and how often each decided
qnet macfilter rule block in on en0 src 02:00:00:00:00:07    one more, behind the others
qnet macfilter delrule block in on en0 src 02:00:00:00:00:07 one less
qnet macfilter flushrule en0                                 none for that interface
qnet macfilter default block                                 what becomes of frames that no rule fits
qnet mount macfilter                                         load the filter; without rules it lets everything pass
"""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError, as_json, facts, table

WORDS = ("rule", "delrule", "flushrule", "default")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("--module", default="macfilter", metavar="MODULE", help="#NUMBER, where it is loaded more than once")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="REQUEST", help=", ".join(WORDS))


def run(args: argparse.Namespace) -> int:
    words = list(args.words)
    if words[-1:] == ["--json"]:
        words.pop()
        args.json = True
    if words:
        command, arguments = parsed(words)
        told = iopkt.ask(args, "specific", module=args.module, command=command, arguments=arguments)
    else:
        told = iopkt.ask(args, "specific", module=args.module)
    if args.json:
        print(as_json(told))
    elif not words:
        rows = [
            (number, one["rule"], "no such interface" if one.get("present") is False else one["matched"])
            for number, one in enumerate(iopkt.listed(told["rules"]), 1)
        ]
        print(facts({"default": told["default"]}) + ("\n\n" + table(rows, ("#", "RULE", "MATCHED")) if rows else ""))
    return 0


def parsed(words: list[str]) -> tuple[str, dict[str, object]]:
    """The request that *words* ask for."""
    command, rest = words[0], words[1:]
    if command not in WORDS:
        raise CommandError(f"there is no request {command!r}: {', '.join(WORDS)}", status=2)
    if command in ("rule", "delrule"):
        if not rest:
            raise CommandError(f"{command} needs a rule, like block in on en0 src 02:00:00:00:00:07", status=2)
        return command, {"rule": " ".join(rest)}
    if len(rest) != 1:
        raise CommandError(f"{command} needs {'an interface' if command == 'flushrule' else 'pass or block'}", status=2)
    return command, {"interface" if command == "flushrule" else "value": rest[0]}
