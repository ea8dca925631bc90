"""`qnet netstat`: frames per interface (`-i`, the default), per protocol (`-s`), or per second (`-w`), with every drop by reason."""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt, layer2
from qnetpy.cli.nicinfo import as_table, print_line
from qnetpy.cli.output import as_json, scaled, table
from qnetpy.cli.rates import Rate, readings

HEADER = ("INTERFACE", "IN/S", "BYTES/S", "OUT/S", "BYTES/S", "DROPPED/S")
PROTOCOLS = ("ethertypes", "ip_protocols", "hooks", "modules", "failures", "shed", "absent", "engines", "requests_refused")
LAYER2 = ("port", "carried", "specific")
"""Of each interface."""
REPEAT = 20
"""Readings after which the heads of the columns are printed again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-i", dest="interfaces", action="store_true", help="interfaces, which is the default")
    how.add_argument(
        "-s",
        dest="protocols",
        action="store_true",
        help="protocols, hooks, what modules raised, layer 2",
    )
    how.add_argument("-w", dest="wait", type=float, metavar="SECONDS", help="interfaces, what they do per second, until Ctrl-C")
    parser.add_argument("-I", dest="interface", default="", metavar="IF", help="only this interface")
    parser.add_argument("-c", dest="count", type=int, default=0, metavar="N", help="with -w: end after so many")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs; with -w a line for each reading")


def run(args: argparse.Namespace) -> int:
    if args.wait is not None:
        return _live(args)
    found = iopkt.ask(args, "facts")
    if args.protocols:
        chosen: dict[str, object] = {name: found.get(name) for name in PROTOCOLS}
        chosen["layer2"] = {str(one["name"]): {name: one.get(name) for name in LAYER2} for one in iopkt.interfaces_of(found)}
        print(as_json(chosen) if args.json else _protocols(found))
        return 0
    interfaces = iopkt.interfaces_of(found, args.interface)
    print(as_json(interfaces) if args.json else _interfaces(interfaces))
    return 0


def _interfaces(interfaces: list[dict[str, object]]) -> str:
    rows = [
        [
            str(one["name"]) + ("" if one["up"] else "*"),
            *(one[key] for key in ("mtu", "mac", "rx_frames", "rx_bytes", "tx_frames", "tx_bytes")),
            sum(iopkt.numbers(one["drops"]).values()),
            iopkt.counted(one["drops"]),
        ]
        for one in interfaces
    ]
    return table(rows, ("NAME", "MTU", "ADDRESS", "IPKTS", "IBYTES", "OPKTS", "OBYTES", "DROPS", "REASONS"))


def _types_seen(hook: dict[str, object]) -> str:
    """Of what comes in a driver hands up what somebody registered, or all; what goes out meets all hooks."""
    return "all" if hook["everything"] or hook["point"] == "out" else "registered"


def _where(names: object) -> str:
    return " ".join(map(str, names)) if isinstance(names, list) else "all"


def _protocols(found: dict[str, object]) -> str:
    types = [[f"{iopkt.number(one['ethertype']):#06x}", one["module"] or "-", one["frames"]] for one in iopkt.listed(found["ethertypes"])]
    protocols = [[one["protocol"], one["module"] or "-", one["packets"]] for one in iopkt.listed(found["ip_protocols"])]
    hooks = [
        [one["name"], one["module"] or "-", one["point"], one["order"], _types_seen(one), _where(one.get("interfaces"))]
        for one in iopkt.listed(found["hooks"])
    ]
    modules = [
        [f"#{one['number']}", one["name"], *(iopkt.counted(one.get(what)) or "nothing" for what in ("failures", "slow", "counters"))]
        for one in iopkt.listed(found["modules"])
    ]
    tables = [
        table(types, ("ETHERTYPE", "MODULE", "FRAMES")),
        table(protocols, ("IP PROTOCOL", "MODULE", "PACKETS")) if protocols else "",
        table(hooks, ("HOOK", "MODULE", "POINT", "ORDER", "ETHERTYPES", "INTERFACES")) if hooks else "",
        table(modules, ("NUMBER", "MODULE", "RAISED", "SLOW", "COUNTED")),
        *([f"requests without a place: {refused}"] if (refused := iopkt.counted(found.get("requests_refused"))) else []),
        *layer2.tables(iopkt.interfaces_of(found)),
    ]
    return "\n\n".join(filter(None, tables))


def _live(args: argparse.Namespace) -> int:
    for shown, (facts, rates) in enumerate(readings(lambda: iopkt.ask(args, "facts"), args.wait, args.count)):
        names = {one["name"] for one in iopkt.interfaces_of(facts, args.interface)}
        chosen = [rate for rate in rates if rate.name in names]
        if args.json:
            print_line({rate.name: as_table(rate) for rate in chosen})
        else:
            print(_rows(chosen, shown % REPEAT == 0), flush=True)
    return 0


def _rows(rates: list[Rate], head: bool) -> str:
    """Columns of fixed width: the next reading's stand below these."""
    lines = ["{:<12}{:>9}{:>9}{:>9}{:>9}  {}".format(*HEADER)] if head else []
    for one in rates:
        drops = ", ".join(f"{reason} {scaled(count)}" for reason, count in sorted(one.drops.items())) or "nothing"
        numbers = map(scaled, (one.rx_frames, one.rx_bytes, one.tx_frames, one.tx_bytes))
        lines.append("{:<12}{:>9}{:>9}{:>9}{:>9}  {}".format(one.name, *numbers, drops))
    return "\n".join(lines)
