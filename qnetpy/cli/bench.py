"""`qnet bench`: our figures beside the peers' of the same run. The measurements are in the source tree's folder bench/."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from qnetpy.cli.output import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    parser.add_argument("--only", choices=("messages", "files", "programs", "pipe", "links", "paths", "peers"), help="only this part")
    parser.add_argument("--mtu", type=int, action="append", default=[], help="only at this MTU; may be repeated (default: 1500 and 9000)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of each measurement, of which the median counts")
    parser.add_argument("--count", type=int, default=3000, metavar="N", help="round trips per run")
    parser.add_argument("--pipe", type=int, default=1024, metavar="MIB", help="with --only pipe: how much goes through it")
    parser.add_argument("--columns", default="", metavar="NAMES", help="with --only files: only these columns, as stat,small,find")
    parser.add_argument(
        "--without", action="append", default=[], choices=("sshfs", "9P", "local"), help="with --only files: without this peer"
    )
    parser.add_argument("--options", default="", metavar="TEXT", help="of messages and files: mount options of /net, as attr_valid=60")
    parser.add_argument("--bearer", choices=("ethernet", "udp"), default="ethernet", help="of messages and files: how frames travel")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of messages and files: the wire takes so long each way")


def run(args: argparse.Namespace) -> int:
    script = Path(__file__).parents[2] / "bench" / "run.py"
    if not script.exists():
        raise CommandError("the measurements are not part of an installed package", "qnet bench in a source tree")
    words = [f"--runs={args.runs}", f"--count={args.count}", f"--pipe={args.pipe}", *(f"--mtu={mtu}" for mtu in args.mtu)]
    words += ["--json"] if args.json else []
    words += [f"--only={args.only}"] if args.only else []
    words += [f"--columns={args.columns}", f"--bearer={args.bearer}", f"--delay={args.delay}", f"--options={args.options}"]
    words += [f"--without={peer}" for peer in args.without]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(script), *words])
