"""`qnet mount`: mount /net, or a part of it, once more with options of its own; load a driver or a protocol module into a running io-pkt;
without arguments, list what is loaded and what is mounted.

qnet mount -o ro b:/srv /mnt/srv                                   a directory of node b
qnet mount -o attr_valid=30 /mnt/net                               all of /net; -t qnet where the directory is not there yet
qnet mount --own ~/b b:/srv -- make                                a mount for one command, by any user, seen by nobody else
qnet mount -T io-pkt -o ifname=eth1 /lib/dll/devnp-packet.so       as in QNX: a driver
qnet mount -o ifname=eth1 packet                                   the same
qnet mount -o ifname=eth1 --fault drop=5% --wrap pcap,file=F packet    wrappers, the first around the driver, the last outermost
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Mapping

from qnetpy.cli import daemon, iopkt
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
    parser.add_argument("-t", dest="filesystem", choices=["qnet"], help="mount /net, whatever the arguments look like; alone: list mounts")
    parser.add_argument(
        "--own", metavar="DIRECTORY", help="mount there for one command, behind --, in a namespace of one's own: needs no rights"
    )
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help="[NODE:/DIRECTORY] DIRECTORY to mount on; or a module: packet, lsm-qnet.so, a dotted path"
    )


def _fault(text: str) -> list[str]:
    return ["fault", text]


def _wrapper(text: str) -> list[str]:
    name, _, options = text.partition(",")
    return [name, options]


def run(args: argparse.Namespace) -> int:
    if args.own:
        return _own(args)
    if not args.what:
        if args.wrap or args.options:
            raise CommandError("options and wrappers belong to a module: which one is to be loaded?", status=2)
        return _list(args)
    if is_filesystem(args):
        if args.wrap or args.type or args.node:
            raise CommandError("wrappers, -T and -n belong to a module, not to a mount of /net", status=2)
        *source, point = args.what
        made = daemon.ask("mount", args.config, source="".join(source), point=os.path.abspath(point), options=",".join(args.options))
        if args.json:
            print(as_json(made))
        return 0
    (module,) = args.what
    made = iopkt.ask(args, "mount", module=module, options=",".join(args.options), wrap=args.wrap)
    if args.json:
        print(as_json(made))
        return 0
    interface = f", interface {made['interface']}" if made.get("interface") else ""
    print(f"{made['kind']} {made['name']} is loaded as #{made['number']}{interface}")
    if made.get("edited"):
        print(f"qnet mount: {made['edited']}", file=sys.stderr)
    return 0


def _own(args: argparse.Namespace) -> int:
    """`--own DIRECTORY [NODE:/DIRECTORY] -- COMMAND ...`."""
    from qnetpy.mountsource import parse_source
    from qnetpy.netfs import own
    from qnetpy.netfs.mount import NET_OPTIONS
    from resmgr.errors import ResmgrError

    source = args.what.pop(0) if args.what and ":" in args.what[0] else ""
    command = args.what or [os.environ.get("SHELL") or "/bin/sh"]
    point = os.path.realpath(args.own)
    try:
        names, options = parse_source(source), own.parse_options(",".join(args.options), NET_OPTIONS)
    except ValueError as error:
        raise CommandError(str(error), status=2) from None
    path = daemon.socket_path(args.config)
    daemon.connect(args.config).close()
    try:
        return own.run(path, names, point, options, command)
    except ResmgrError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    except own.NotStarted as error:
        hint = "ulimit -u with more, or fewer processes of this user" if error.errno == errno.EAGAIN else ""
        status = 127 if error.errno == errno.ENOENT else 126
        raise CommandError(f"{command[0]}: not started in {point}: {error.why}", hint, status) from None


def is_filesystem(args: argparse.Namespace) -> bool:
    """Whether a directory is to be mounted on, and no module loaded. CommandError for too many arguments."""
    if len(args.what) > 2:
        raise CommandError("[NODE:/DIRECTORY] DIRECTORY, or one module", status=2)
    return (
        bool(args.filesystem)
        or len(args.what) == 2
        or (not args.type and not args.node and "/" in args.what[0] and os.path.isdir(args.what[0]))
    )


def _list(args: argparse.Namespace) -> int:
    found = {} if args.filesystem else iopkt.ask(args, "facts")
    mounts = _mounts(args)
    if args.json:
        modules = {"name": found.get("name"), "modules": iopkt.listed(found.get("modules")), "absent": found.get("absent")}
        print(as_json((modules if found else {}) | {"mounts": mounts}))
        return 0
    if found:
        print(shown(found))
    if found and mounts:
        print()
    if mounts or not found:
        print(table([[one["point"], one["source"], one["options"] or "-"] for one in mounts], ("MOUNTED ON", "WHAT", "OPTIONS")))
    return 0


def _mounts(args: argparse.Namespace) -> list[dict[str, object]]:
    """Of the node that io-pkt is; an io-pkt without Qnet has none."""
    if args.type or args.run_dir or args.node:
        return []
    try:
        return iopkt.listed(daemon.ask("status", args.config).get("mounts"))
    except CommandError:
        if args.filesystem:
            raise
        return []


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
