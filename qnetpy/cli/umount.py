"""`qnet umount`: unmount a mount of /net; unload a driver or a protocol module of a running io-pkt, under traffic.

qnet umount /mnt/srv               a mount, as `qnet mount -t qnet` lists it, also while it is in use
qnet umount /dev/io-net/eth1       the driver of an interface; `qnet ifconfig eth1 destroy` is the same
qnet umount lsm-qnet.so            a protocol
"""

from __future__ import annotations

import argparse
import os

from qnetpy.cli import daemon, iopkt
from qnetpy.cli.output import CommandError, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("-t", dest="filesystem", choices=["qnet"], help="a mount of /net, and nothing else")
    parser.add_argument(
        "what", help="a mountpoint, an interface, a module, a dotted path as it was mounted, or #NUMBER as qnet mount lists it"
    )


def run(args: argparse.Namespace) -> int:
    if args.filesystem or (not (args.type or args.run_dir or args.node) and os.path.isabs(args.what) and _mounted(args.what, args.config)):
        gone = daemon.ask("umount", args.config, point=os.path.normpath(os.path.abspath(args.what)))
        if args.json:
            print(as_json(gone))
        return 0
    gone = iopkt.ask(args, "umount", what=args.what)
    if args.json:
        print(as_json(gone))
    else:
        print(f"{gone.get('kind', 'module')} {gone['name']} is unloaded")
    return 0


def _mounted(point: str, config: str | None) -> bool:
    try:
        mounts = iopkt.listed(daemon.ask("status", config).get("mounts"))
    except CommandError:
        return False
    return os.path.normpath(point) in [one["point"] for one in mounts]
