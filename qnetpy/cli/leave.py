"""`qnet leave`: this machine is a node no more: the others are told, its keys are deleted."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from qnetpy.cli.output import CommandError, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="though the others cannot be told, or the cluster's root key is here (it stays)"
    )
    parser.add_argument("--dir", metavar="DIR", help="where keys are kept (default: key_dir of the configuration, /etc/qnet)")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon, down
    from qnetpy.cli.settings import load
    from qnetpy.identity.keyfiles import AUTHORITY, NODE_KEY, ROOT_KEY, StoreError, load_identity
    from qnetpy.members.store import erase_identity

    config = load(args.config)
    folder = Path(args.dir or config.node.key_dir)
    if not os.path.lexists(folder / NODE_KEY) and not config.node.key_command:
        raise CommandError(f"this machine is no node ({folder})")
    try:
        name = load_identity(folder, config.node.key_command).name
    except StoreError as error:
        name = f"(unreadable: {error.strerror})"
    if os.path.lexists(folder / AUTHORITY / ROOT_KEY) and not args.force:
        raise CommandError(
            f"the cluster's root key is on this machine ({folder / AUTHORITY}): without it nobody can make issuers", "--force"
        )
    told = ""
    if daemon.running_pid(config.node.run_dir):
        told = str(daemon.ask("leave", args.config)["told"])
    if not told and not args.force:
        hint = f"qnet up first; or --force, and on a node that may: qnet revoke {name}"
        raise CommandError("no node that may revoke this one could be told, so its keys would still be good elsewhere", hint)
    if daemon.running_pid(config.node.run_dir):
        down.stop(config.node.run_dir)
    try:
        erase_identity(folder)
    except StoreError as error:
        raise CommandError(str(error.strerror)) from error
    if args.json:
        print(as_json({"node": name, "told": told or None}))
    else:
        print(f"node {name} left the cluster" + ("" if told else f"; nobody was told: qnet revoke {name}, on a node that may"))
    return 0
