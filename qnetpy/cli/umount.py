"""`qnet umount`: unload a driver or a protocol module of a running io-pkt, under traffic.

qnet umount /dev/io-net/eth1       the driver of an interface; `qnet ifconfig eth1 destroy` is the same
qnet umount lsm-qnet.so            a protocol
"""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt
from qnetpy.cli.output import as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("what", help="an interface, a module, a dotted path as it was mounted, or #NUMBER as qnet mount lists it")


def run(args: argparse.Namespace) -> int:
    gone = iopkt.ask(args, "umount", what=args.what)
    if args.json:
        print(as_json(gone))
    else:
        print(f"{gone.get('kind', 'module')} {gone['name']} is unloaded")
    return 0
