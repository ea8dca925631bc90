"""`qnet ifconfig`: interfaces of io-pkt, shown as BSD and QNX show them; made, unmade and switched.

qnet ifconfig                              all
qnet ifconfig vlan5 create vlan 5 vlanif en0   load the driver `vlan`; the words behind `create` are its options, `vlan 5` is `vlan=5`
qnet ifconfig vlan5 destroy                unload it; any driver, as in QNX
qnet ifconfig agr0 agrport en2             a request that only this kind of driver knows: SPECIFIC
qnet ifconfig en0 mtu 1400 up              what modules may send at most, never more than the driver carries; switch on, `down`: off
"""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt, layer2
from qnetpy.cli.output import CommandError, as_json

FLAGS = (
    ("UP", 0x1),
    ("BROADCAST", 0x2),
    ("LOOPBACK", 0x8),
    ("RUNNING", 0x40),
    ("PROMISC", 0x100),
    ("SIMPLEX", 0x800),
    ("MULTICAST", 0x8000),
)
"""BSD's names and bits."""
SPECIFIC = {
    "agrport": ("interface",),
    "-agrport": ("interface",),
    "lacp": ("value",),
    "portpriority": ("interface", "number"),
    "vlan": ("number",),
    "vlanprio": ("number",),
}
"""Requests of aggregates and VLANs (docs/stack/layer2.md), and what stands behind them. Bridges have a command of their own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("-a", dest="every", action="store_true", help="all interfaces, which is the default")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("-agrport", dest="without", default="", metavar="PORT", help="take a port out of an aggregate")
    parser.add_argument("interface", nargs="?", default="", metavar="IF")
    parser.add_argument("words", nargs="*", metavar="create|destroy|up|down|mtu N|...", help="what to do; nothing: show")


def run(args: argparse.Namespace) -> int:
    words = list(args.words)
    if args.without:
        words = ["-agrport", args.without]
    if not words:
        found = iopkt.interfaces_of(iopkt.ask(args, "facts"), "" if args.every else args.interface)
        print(as_json(found) if args.json else "\n".join(map(shown, found)) or "no interfaces")
        return 0
    if words[0] == "create":
        done = iopkt.ask(args, "mount", module=_stem(args.interface), kind="driver", options=_options(args.interface, words[1:]))
    elif words[0] == "destroy":
        if words[1:]:
            raise CommandError(f"nothing is expected behind destroy: {words[1]}", status=2)
        done = iopkt.ask(args, "destroy", interface=args.interface)
    elif words[0] in SPECIFIC:
        command, arguments = specific(words)
        done = iopkt.ask(args, "specific", interface=args.interface, command=command, arguments=arguments)
    else:
        done = iopkt.ask(args, "interface", interface=args.interface, **settings(words))
    if args.json:
        print(as_json(done))
    return 0


def settings(words: list[str]) -> dict[str, object]:
    """`mtu 1400 up` as a request's arguments."""
    found: dict[str, object] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("up", "down"):
            found["up"] = word == "up"
        elif word == "mtu" and rest and rest[0].isascii() and rest[0].isdigit():
            found["mtu"] = int(rest.pop(0))
        elif word == "mtu":
            raise CommandError("mtu needs a number", status=2)
        else:
            raise CommandError(f"there is no {word!r} here: create, destroy, up, down, mtu N, {', '.join(SPECIFIC)}", status=2)
    return found


def specific(words: list[str]) -> tuple[str, dict[str, object]]:
    """`agrport en2` as a command and its arguments."""
    command, given = words[0], words[1:]
    names = SPECIFIC[command]
    if len(given) != len(names):
        raise CommandError(f"{command} takes {len(names)} words: {' '.join(name.upper() for name in names)}", status=2)
    found: dict[str, object] = {}
    for name, word in zip(names, given, strict=True):
        if name != "number":
            found[name] = word
            continue
        try:
            found["value"] = int(word, 0)
        except ValueError:
            raise CommandError(f"{command} needs a number, not {word!r}", status=2) from None
    return command, found


def _stem(name: str) -> str:
    stem = name.rstrip("0123456789")
    if not stem or stem == name:
        raise CommandError(f"{name!r} is not a driver's name and a number, like vlan5", status=2)
    return stem


def _options(name: str, words: list[str]) -> str:
    """`name=vlan5` and the words: `if=en0,vlan=5` as it stands, `vlan 5 vlanif en0` as pairs."""
    options, rest = [f"name={name}"], list(words)
    while rest:
        word = rest.pop(0)
        options.append(word if "=" in word or not rest else f"{word}={rest.pop(0)}")
    return ",".join(options)


def shown(one: dict[str, object]) -> str:
    """An interface in BSD's form."""
    multicast = bool(one["broadcast"])
    has = {
        "UP": one["enabled"],
        "BROADCAST": multicast,
        "LOOPBACK": one["module"] == "lo",
        "RUNNING": one["up"],
        "PROMISC": one["promiscuous"],
        "SIMPLEX": True,
        "MULTICAST": multicast,
    }
    names = [name for name, _ in FLAGS if has[name]]
    bits = sum(bit for name, bit in FLAGS if has[name])
    addresses = one["addresses"]
    assert isinstance(addresses, list)
    lines = [f"{one['name']}: flags={bits:x}<{','.join(names)}> mtu {one['mtu']}", f"\taddress: {one['mac']}"]
    if one.get("owner"):
        lines.append(f"\towner: {one['owner']}, which takes all that it receives")
    lines.append(f"\tstatus: {'active' if one['carrier'] else 'no carrier'}")
    lines += [f"\tinet{'6' if ':' in str(address) else ''} {address}" for address in addresses]
    lines += [f"\t{line}" for line in layer2.ports_of(one)]
    return "\n".join(lines)
