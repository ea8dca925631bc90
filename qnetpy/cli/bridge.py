"""`qnet bridge`: bridges of io-pkt, as brconfig(8) of NetBSD and QNX shows and changes them.

qnet bridge                                    all bridges
qnet bridge bridge0                            one of them, its members and the spanning tree
qnet bridge bridge0 addr                       the stations that it knows
qnet bridge bridge0 add en0 add en1 stp en0    requests, one after another; `-stp en0` switches off again
qnet bridge bridge0 ipf                        IP filters see what is bridged; `-ipf`: not any more
qnet ifconfig bridge0 create                   make one; `destroy` unmakes it
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError, as_json, facts, table

Words = list[str]
Request = tuple[str, dict[str, object]]

INTERFACE = ("add", "delete", "addspan", "delspan")
SWITCHES = ("learn", "discover", "stp", "edge", "autoedge", "ptp", "guard", "rootguard", "tcnguard")
NUMBERS = ("maxaddr", "timeout", "priority", "hellotime", "fwddelay", "maxage", "holdcnt")
PORT_NUMBERS = ("ifmaxaddr", "storm", "ifpriority", "ifpathcost")
ALONE = ("flush", "flushall")
OF_ALL = ("ipf",)
"""Switches of the bridge itself."""
WORDS = (*INTERFACE, *SWITCHES, *NUMBERS, *PORT_NUMBERS, *ALONE, *OF_ALL, "static", "deladdr", "proto", "up", "down", "addr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("-a", dest="every", action="store_true", help="all bridges, which is the default")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("bridge", nargs="?", default="", metavar="BRIDGE")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="REQUEST", help=", ".join(WORDS) + "; - in front of a switch: off")


def run(args: argparse.Namespace) -> int:
    words = list(args.words)
    if "--json" in words:
        words.remove("--json")
        args.json = True
    if not args.bridge or args.every:
        found = [iopkt.ask(args, "specific", interface=name) for name in _bridges(args)]
        print(as_json(found) if args.json else "\n\n".join(map(shown, found)) or "no bridges")
        return 0
    requests, addresses = parsed(words)
    told: dict[str, object] = {}
    for command, arguments in requests:
        if command in ("up", "down"):
            iopkt.ask(args, "interface", interface=args.bridge, up=command == "up")
        else:
            told = iopkt.ask(args, "specific", interface=args.bridge, command=command, arguments=arguments)
    if not words or addresses or (args.json and not told):
        told = iopkt.ask(args, "specific", interface=args.bridge)
    if args.json:
        print(as_json(told["addresses"] if addresses else told))
    elif addresses:
        print(stations(told) or "no stations")
    elif not words:
        print(shown(told))
    return 0


def _bridges(args: argparse.Namespace) -> list[str]:
    found = iopkt.ask(args, "facts")
    return [str(one["name"]) for one in iopkt.interfaces_of(found) if one.get("module") == "bridge"]


def parsed(words: Words) -> tuple[list[Request], bool]:
    """The requests that *words* ask for, and whether the stations are to be shown."""
    rest, requests, addresses = list(words), [], False
    while rest:
        word = rest.pop(0)
        name, on = (word[1:], False) if word.startswith("-") else (word, True)
        take = _taker(word, rest)
        if name in SWITCHES:
            requests.append((name, {"interface": take("an interface"), "on": on}))
        elif name in OF_ALL:
            requests.append((name, {"on": on}))
        elif word in INTERFACE:
            requests.append((word, {"interface": take("an interface")}))
        elif word in PORT_NUMBERS:
            requests.append((word, {"interface": take("an interface"), "value": _number(word, take("a number"))}))
        elif word in NUMBERS:
            requests.append((word, {"value": _number(word, take("a number"))}))
        elif word in (*ALONE, "up", "down"):
            requests.append((word, {}))
        elif word == "static":
            requests.append((word, {"interface": take("an interface"), "address": take("an address")}))
        elif word == "deladdr":
            requests.append((word, {"address": take("an address")}))
        elif word == "proto":
            requests.append((word, {"value": take("rstp or stp")}))
        elif word == "addr":
            addresses = True
        else:
            raise CommandError(f"there is no request {word!r}: {', '.join(WORDS)}", status=2)
    return requests, addresses


def _taker(word: str, rest: Words) -> Callable[[str], str]:
    def take(what: str) -> str:
        if not rest:
            raise CommandError(f"{word} needs {what}", status=2)
        return rest.pop(0)

    return take


def _number(word: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise CommandError(f"{word} needs a number, not {text!r}", status=2) from None


def shown(told: Mapping[str, object]) -> str:
    """A bridge for people."""
    tree = told["stp"]
    assert isinstance(tree, dict)
    members = iopkt.listed(told["members"])
    lines = {
        "bridge": f"{told['bridge']} {told['mac']} {'up' if told['up'] else 'down'} mtu {told['mtu']}",
        "stations": f"{len(iopkt.listed(told['addresses']))} of {told['maxaddr']}, forgotten after {told['timeout']:g} s",
    }
    if told["ipf"]:
        lines["ipf"] = "IP filters see what is bridged"
    if any("stp" in one for one in members):
        lines["spanning tree"] = (
            f"{tree['protocol']}, bridge {tree['identifier']}, hello {tree['hellotime']:g} s, forward delay {tree['fwddelay']:g} s, "
            f"max age {tree['maxage']:g} s"
        )
        way = "this bridge" if tree["root_port"] is None else f"through {tree['root_port']}, cost {tree['root_cost']}"
        lines["root"] = f"{tree['root']}, {way}"
        lines["topology changes"] = str(tree["topology_changes"])
    engine = told.get("engine")
    if isinstance(engine, dict):
        why = f" ({engine['why']})" if engine["why"] else ""
        lines["engine"] = f"{engine['name']}{why}, {engine['frames']} frames carried"
    if told["drops"]:
        lines["dropped"] = iopkt.counted(told["drops"])
    rows = [_row(one, engine) for one in members]
    header = ("MEMBER", "FLAGS", "STP", "COST", "RX", "TX", "ENGINE", "DROPPED")
    return facts(lines) + ("\n\n" + table(rows, header) if rows else "")


def _row(one: Mapping[str, object], engine: object) -> list[object]:
    tree = one.get("stp")
    state, cost = "-", "-"
    if isinstance(tree, dict):
        state = "guarded" if tree["guarded"] else f"{tree['role']} {tree['state']}"
        cost = str(tree["cost"])
    elif one.get("present") is False:
        state = f"absent: {one['why']}"
    elif not one["up"]:
        state = "down"
    flags = one["flags"]
    assert isinstance(flags, list)
    ports = engine["ports"] if isinstance(engine, dict) else {}
    port = ports.get(one["interface"], {})
    how = "; ".join(port["off"]) or port["how"] if port else "-"
    dropped = iopkt.counted(one["drops"]) or "nothing"
    return [one["interface"], ",".join(map(str, flags)), state, cost, one["received"], one["forwarded"], how, dropped]


def stations(told: Mapping[str, object]) -> str:
    """As `brconfig bridge0 addr`."""
    rows = [
        [one["address"], one["interface"], "static" if one["static"] else f"{one['idle']:g} s ago"]
        for one in iopkt.listed(told["addresses"])
    ]
    return table(rows, ("STATION", "MEMBER", "SEEN")) if rows else ""
