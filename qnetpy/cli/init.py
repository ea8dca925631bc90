"""`qnet init CLUSTER`: make a cluster on this machine, and make this machine its first node."""

from __future__ import annotations

import argparse
import os

from qnetpy.cli.output import CommandError, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cluster", help="name of the cluster: letters a-z, digits, hyphens")
    parser.add_argument("--node", metavar="NAME", help="this machine's node name (default: its host name)")
    parser.add_argument("--role", action="append", default=[], help="a role of this node; may be repeated")
    parser.add_argument("--no-node", action="store_true", help="only make the root key; this machine does not become a node")
    parser.add_argument("--replace", action="store_true", help="though this machine is a node of another cluster, whose keys it loses")
    parser.add_argument("--dir", metavar="DIR", help="where keys are kept (default: key_dir of the configuration, /etc/qnet)")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    import errno
    import socket
    import time
    from pathlib import Path

    from qnetpy.cli.settings import key_directory
    from qnetpy.identity.certificate import ROLE_ISSUER
    from qnetpy.identity.keyfiles import (
        AUTHORITY,
        ROOT_KEY,
        StoreError,
        check_vacant,
        create_cluster,
        install_bundle,
        issue_node,
        make_power,
    )
    from qnetpy.identity.names import is_name

    folder: Path = key_directory(args.dir, args.config)
    name = args.node or socket.gethostname().split(".")[0].lower()
    for what, text in (("cluster", args.cluster), *((("node", name),) if not args.no_node else ())):
        if not is_name(text):
            raise CommandError(f"{text!r} cannot be the name of a {what}: lower-case letters, digits and hyphens, at most 63", status=2)
    root_key = folder / AUTHORITY / ROOT_KEY
    try:
        if not args.no_node and not args.replace and not os.path.lexists(root_key):
            check_vacant(folder)
        authority = create_cluster(folder, args.cluster, time.time())
        if not args.no_node:
            install_bundle(folder, issue_node(folder, name, [*args.role, ROLE_ISSUER], now=time.time()), replace=True)
            make_power(folder, name, time.time())
    except StoreError as error:
        node_exists = error.errno == errno.EEXIST and not os.path.lexists(root_key)
        raise CommandError(str(error.strerror), "--no-node, or --replace to give that up" if node_exists else "") from error
    if args.json:
        print(as_json({"cluster": authority.cluster, "node": None if args.no_node else name, "directory": str(folder)}))
        return 0
    print(f"cluster {authority.cluster}: root key in {folder}/authority; whoever has it can make nodes")
    if not args.no_node:
        print(f"this machine is node {name}; start it with: qnet up")
        print("then, for each further machine: qnet invite, and there: qnet join CODE && qnet up")
    return 0
