"""`qnet nicinfo [IF]`: an interface and every counter that it has, as QNX's nicinfo; `--watch`: what it does per second."""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt, layer2
from qnetpy.cli.output import as_json, begin_picture, scaled
from qnetpy.cli.rates import Rate, readings

WIDTH = 36


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--watch", nargs="?", type=float, const=1.0, metavar="SECONDS", help="go on, with rates (default: every second)")
    parser.add_argument("-c", dest="count", type=int, default=0, metavar="N", help="with --watch: end after so many")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs; with --watch a line for each reading")
    parser.add_argument("interface", nargs="?", default="", metavar="IF", help="default: all")


def run(args: argparse.Namespace) -> int:
    if args.watch is None:
        found = iopkt.interfaces_of(iopkt.ask(args, "facts"), args.interface)
        print(as_json(found) if args.json else "\n\n".join(described(one) for one in found) or "no interfaces")
        return 0
    for facts, rates in readings(lambda: iopkt.ask(args, "facts"), args.watch, args.count):
        chosen = iopkt.interfaces_of(facts, args.interface)
        by_name = {rate.name: rate for rate in rates}
        if args.json:
            print_line([one | {"rates": as_table(by_name[str(one["name"])])} for one in chosen])
            continue
        begin_picture()
        print("\n\n".join(f"{described(one)}\n{per_second(by_name[str(one['name'])])}" for one in chosen), flush=True)
    return 0


def print_line(value: object) -> None:
    """One reading, as JSON on one line, at once."""
    import json

    print(json.dumps(value, sort_keys=True, default=str), flush=True)


def as_table(rate: Rate) -> dict[str, object]:
    """A rate as JSON has it."""
    import attrs

    return {name: value if isinstance(value, dict) else round(value, 1) for name, value in attrs.asdict(rate).items() if name != "name"}


def described(one: dict[str, object]) -> str:
    """`label ..... value` lines."""
    state = "up" if one["up"] else "switched off" if not one["enabled"] else "no carrier"
    addresses = one["addresses"]
    info = one["info"]
    assert isinstance(addresses, list)
    assert isinstance(info, dict)
    lines = [f"{one['name']}:", _line("Driver", f"{one['module']} (#{one['number']})")]
    lines += [
        _line("Physical Node ID", str(one["mac"]).replace(":", "").upper()),
        _line("Link", state),
        _line("Maximum Transmittable data Unit", one["mtu"]),
        _line("Promiscuous Mode", f"on, for {one['promiscuous']}" if one["promiscuous"] else "off"),
        *(_line("Address", address) for address in addresses),
        *(_line(label.capitalize(), value) for label, value in info.items() if label != "driver"),
        *(_line(label, value) for label, value in layer2.lines(one)),
        "",
        _line("Packets Transmitted OK", one["tx_frames"]),
        _line("Bytes Transmitted OK", one["tx_bytes"]),
        _line("Packets Received OK", one["rx_frames"]),
        _line("Bytes Received OK", one["rx_bytes"]),
        *(_line(f"Dropped: {reason}", count) for reason, count in sorted(iopkt.numbers(one["drops"]).items())),
    ]
    return "\n".join(lines)


def per_second(rate: Rate) -> str:
    lines = [
        "",
        _line("Packets Transmitted per second", scaled(rate.tx_frames)),
        _line("Bytes Transmitted per second", scaled(rate.tx_bytes)),
        _line("Packets Received per second", scaled(rate.rx_frames)),
        _line("Bytes Received per second", scaled(rate.rx_bytes)),
        *(_line(f"Dropped per second: {reason}", scaled(count)) for reason, count in sorted(rate.drops.items())),
    ]
    return "\n".join(lines)


def _line(label: str, value: object) -> str:
    return f"  {label + ' ':.<{WIDTH}}".rstrip() + f" {value}"
