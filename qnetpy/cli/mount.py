"""`qnet mount`: load a driver or a protocol module into a running io-pkt; without a module, list what is loaded.

qnet mount -T io-pkt -o ifname=eth1 /lib/dll/devnp-packet.so       as in QNX
qnet mount -o ifname=eth1 packet                                   the same
qnet mount -o ifname=eth1 --fault drop=5% --wrap pcap,file=F packet    wrappers, the first around the driver, the last outermost
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError, as_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="key=value,flag,...; may be repeated")
    for name, take, metavar, what in (
        ("--fault", _fault, "OPTIONS", "a bad link around a driver: drop=5%%,delay=20ms"),
        ("--wrap", _wrapper, "NAME[,OPTIONS]", "a wrapper around a driver: tracer, pcap,file=F, rate,tx=10M"),
    ):
        parser.add_argument(name, dest="wrap", action="append", default=[], type=take, metavar=metavar, help=what)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("module", nargs="?", help="packet, lsm-qnet.so, a dotted path")


def _fault(text: str) -> list[str]:
    return ["fault", text]


def _wrapper(text: str) -> list[str]:
    name, _, options = text.partition(",")
    return [name, options]


def run(args: argparse.Namespace) -> int:
    if args.module is None:
        if args.wrap or args.options:
            raise CommandError("options and wrappers belong to a module: which one is to be loaded?", status=2)
        return _list(args)
    made = iopkt.ask(args, "mount", module=args.module, options=",".join(args.options), wrap=args.wrap)
    if args.json:
        print(as_json(made))
        return 0
    interface = f", interface {made['interface']}" if made.get("interface") else ""
    print(f"{made['kind']} {made['name']} is loaded as #{made['number']}{interface}")
    if made.get("edited"):
        print(f"qnet mount: {made['edited']}", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    found = iopkt.ask(args, "facts")
    if args.json:
        print(as_json({"name": found.get("name"), "modules": iopkt.listed(found.get("modules")), "absent": found.get("absent")}))
    else:
        print(shown(found))
    return 0


def shown(found: Mapping[str, object]) -> str:
    """What is loaded, for people, of the facts."""
    rows = []
    for one in iopkt.listed(found.get("modules")):
        wrappers = one.get("wrappers")
        around = "".join(f" in {name}" for name, _ in wrappers) if isinstance(wrappers, list) else ""
        rows.append([f"#{one['number']}", f"{one['name']}{around}", one["kind"], one["interface"] or "-", *_options_and_state(one)])
    width = max(map(len, rows), default=6)
    header = ("NUMBER", "MODULE", "KIND", "INTERFACE", "OPTIONS", "STATE")
    lines = [table([row + [""] * (max(width, 6) - len(row)) for row in rows], header + ("",) * (max(width, 6) - 6))]
    absent = found.get("absent")
    lines += [f"{name} waits to be loaded again: {why}" for name, why in absent.items()] if isinstance(absent, dict) else []
    return "\n".join(lines)


def _options_and_state(one: Mapping[str, object]) -> list[str]:
    options = [str(one["options"])] if one["options"] else []
    state = [f"raised: {failed}"] if (failed := iopkt.counted(one.get("failures"))) else []
    state += [f"slow: {slow}"] if (slow := iopkt.counted(one.get("slow"))) else []
    restarts = one.get("restarts")
    if isinstance(restarts, dict):
        options.append(f"restart={restarts['most']}")
        if restarts["total"]:
            state.append("restarted once" if restarts["total"] == 1 else f"restarted {restarts['total']} times")
    return [",".join(options) or "-", *state]
