"""`qnet join CODE [ADDRESS]`: make this machine a node of the cluster that invited it.

Exit status: 0 joined; 1 something here is wrong; 2 wrong usage, or a code with a typing error; 3 the code is wrong; 4 the invitation is
over or the name is taken; 5 nobody who knows the code was found.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qnetpy.cli.output import CommandError, as_json

if TYPE_CHECKING:
    from qnetpy.enrol.client import Miss, Place, Seeker
    from qnetpy.enrol.wire import Grant
    from qnetpy.identity.authority import NodeIdentity

SECONDS = 5.0
CODE_VARIABLE = "QNET_JOIN_CODE"
WRONG, OVER, NOBODY = 3, 4, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "code", help=f"as `qnet invite` printed it; - reads it from standard input, @FILE from a file, env from {CODE_VARIABLE}"
    )
    parser.add_argument("address", nargs="?", help="HOST or HOST:PORT of the inviting node (default: it is looked for on the LAN)")
    parser.add_argument("--name", default="", help="this machine's node name, if the invitation leaves it open (default: its host name)")
    parser.add_argument("--replace", action="store_true", help="though this machine is a node already, whose keys it loses")
    parser.add_argument("--timeout", type=float, default=SECONDS, metavar="SECONDS", help=f"default: {SECONDS:g}")
    parser.add_argument("--dir", metavar="DIR", help="where keys are kept (default: key_dir of the configuration, /etc/qnet)")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon
    from qnetpy.cli.settings import load
    from qnetpy.enrol.client import Seeker
    from qnetpy.enrol.code import BadCode, parse_code
    from qnetpy.identity.keyfiles import StoreError, check_vacant, load_node_key, pending_key
    from qnetpy.identity.names import is_name

    config = load(args.config)
    folder = Path(args.dir or config.node.key_dir)
    try:
        code = parse_code(_code(args.code))
    except BadCode as error:
        raise CommandError(str(error), status=2) from error
    name = args.name or socket.gethostname().split(".")[0].lower()
    if args.name and not is_name(name):
        raise CommandError(f"{name!r} cannot be the name of a node: lower-case letters, digits and hyphens, at most 63", status=2)
    running = daemon.running_pid(config.node.run_dir)
    if running:
        raise CommandError(f"this machine's node is up (process {running})", "qnet down first")
    try:
        if not args.replace:
            check_vacant(folder)
        # Before the code is used up: can keys be stored?
        private = load_node_key(folder, config.node.key_command) if config.node.key_command else pending_key(folder)
    except StoreError as error:
        hint = "--replace, to give that up" if error.errno == 17 else ""
        raise CommandError(str(error.strerror), hint) from error
    seeker = Seeker(code, private, name if is_name(name) else "", os.urandom, time.monotonic, time.monotonic() + args.timeout)
    joined: list[NodeIdentity] = []
    grant = _seek(seeker, args, config.enrol.port, lambda grant: joined.append(_store(grant, private, folder, config.node.key_command)))
    if grant is None:
        raise _failure(seeker.misses, args)
    (identity,) = joined
    if args.json:
        print(as_json({"node": identity.name, "cluster": identity.cluster, "roles": sorted(identity.roles), "directory": str(folder)}))
    else:
        print(f"this machine is node {identity.name} of cluster {identity.cluster}; start it with: qnet up")
    return 0


def _code(argument: str) -> str:
    """The code itself, which other users would see on a command line."""
    try:
        if argument == "-":
            return sys.stdin.readline()
        if argument == "env":
            return os.environ.get(CODE_VARIABLE, "")
        if argument.startswith("@"):
            return Path(argument[1:]).read_text(encoding="ascii")
    except ValueError as error:
        raise CommandError(f"{argument}: not a text") from error
    return argument


def _store(grant: Grant, private: bytes, folder: Path, key_command: str) -> NodeIdentity:
    """Check what was granted and make it this machine's identity."""
    from qnetpy.identity.authority import NodeIdentity
    from qnetpy.identity.certificate import CertificateError, parse_chain, parse_root, verify
    from qnetpy.identity.keyfiles import StoreError, forget_pending, save_identity
    from qnetpy.identity.trust import parse_statement
    from qnetpy.members.store import DirectoryStore, Kept, erase_identity
    from resmgr.errors import BadMessage, Misuse

    try:
        roots = tuple(map(parse_root, grant.roots))
        certificate = parse_chain(grant.chain)
        verify(certificate, roots, time.time())
        identity = NodeIdentity(certificate, private, roots, grant.secret)
        statements = tuple(map(parse_statement, grant.statements))
    except (CertificateError, BadMessage, Misuse) as error:
        raise CommandError(
            f"the certificate that was issued is no good here: {error}", "set the clocks of both machines, and the same code again"
        ) from error
    try:
        erase_identity(folder)
        save_identity(folder, identity, keep_key=bool(key_command))
        DirectoryStore(folder, key_command).save(Kept(identity, statements=statements))
        forget_pending(folder)
    except StoreError as error:
        raise CommandError(str(error.strerror)) from error
    return identity


def _seek(seeker: Seeker, args: argparse.Namespace, port: int, store: Callable[[Grant], None]) -> Grant | None:
    from qnetpy.discovery import rendezvous
    from qnetpy.enrol.client import resolve
    from resmgr.errors import ResmgrError

    if args.address:
        try:
            places = resolve(args.address, port)
        except ValueError as error:
            raise CommandError(str(error), status=2) from error
        except ResmgrError as error:
            raise CommandError(str(error.strerror), status=NOBODY) from error
        return seeker.seek(places, store)
    looking = rendezvous.started()
    try:
        grant = seeker.seek(_heard(looking, args.timeout), store)
    finally:
        looking.close()
    if grant is None and not seeker.misses:
        hint = "qnet join CODE ADDRESS, with the address of the inviting node"
        raise CommandError(f"nobody on this LAN invites ({looking.problem or 'nothing was heard'})", hint, NOBODY)
    return grant


def _heard(looking: object, seconds: float) -> Iterator[Place]:
    from qnetpy.discovery.rendezvous import Rendezvous
    from qnetpy.enrol.client import Place

    assert isinstance(looking, Rendezvous)
    for offer in looking.offers(seconds, time.monotonic):
        for address in offer.addresses:
            yield Place(address, offer.port)


def _failure(misses: list[Miss], args: argparse.Namespace) -> CommandError:
    """One line for what happened at all the places."""
    from qnetpy.enrol.wire import Denied, Refusal, Refused

    for miss in misses:
        if isinstance(miss.outcome, Refused) and miss.outcome.reason is Refusal.WRONG:
            return CommandError(f"{miss.place}: {miss.why}", status=WRONG)
    for miss in misses:
        if isinstance(miss.outcome, Denied) or (isinstance(miss.outcome, Refused) and miss.outcome.reason is not Refusal.BUSY):
            return CommandError(f"{miss.place}: {miss.why}", status=OVER)
    if not misses:
        return CommandError(f"nobody answered within {args.timeout:g} s", "a longer --timeout", NOBODY)
    return CommandError(
        "; ".join(f"{miss.place}: {miss.why}" for miss in misses), "qnet invite there, first" if args.address else "", NOBODY
    )
