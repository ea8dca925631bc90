"""`qnet cert`: issue a node's key and certificate as one file, make this machine that node, or show a certificate."""

from __future__ import annotations

import argparse
import errno
import os
import time
from pathlib import Path

from qnetpy.cli.output import CommandError, as_json, facts

DAY = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in (
        ("issue", "make a key and a certificate for a node; needs the cluster's root key on this machine"),
        ("install", "make this machine the node of a file that `issue` wrote"),
        ("show", "what a certificate says"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("--dir", metavar="DIR", help="where keys are kept (default: key_dir of the configuration, /etc/qnet)")
        verb.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
        verb.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
        if name == "issue":
            verb.add_argument("node", help="the node's name")
            verb.add_argument("--role", action="append", default=[], help="a role of the node; may be repeated")
            verb.add_argument("--days", type=float, help="how long it is valid (default: a year)")
            verb.add_argument(
                "-o", "--output", metavar="FILE", help="default: NODE.qnet; holds a private key, so it is readable by you only"
            )
        else:
            if name == "install":
                verb.add_argument("--replace", action="store_true", help="though this machine is another node, whose keys it loses")
            verb.add_argument(
                "file", nargs="?" if name == "show" else None, help="the file; for show: this machine's certificate by default"
            )


def run(args: argparse.Namespace) -> int:
    from qnetpy.identity.certificate import CertificateError
    from qnetpy.identity.keyfiles import StoreError
    from resmgr.errors import Misuse

    try:
        return {"issue": _issue, "install": _install, "show": _show}[args.verb](args)
    except StoreError as error:
        hints = {("issue", errno.ENOENT): "qnet init CLUSTER", ("install", errno.EEXIST): "--replace, to give that up"}
        hint = hints.get((args.verb, error.errno or 0), "")
        raise CommandError(f"{args.verb}: {error.strerror}", hint) from error
    except CertificateError as error:
        raise CommandError(f"{args.verb}: {args.file or 'this machine'}: {error}") from error
    except Misuse as error:
        raise CommandError(f"{args.verb}: {error}") from error


def _folder(args: argparse.Namespace) -> Path:
    from qnetpy.cli.settings import key_directory

    return key_directory(args.dir, args.config)


def _issue(args: argparse.Namespace) -> int:
    from qnetpy.identity.authority import NODE_VALIDITY
    from qnetpy.identity.keyfiles import issue_node

    validity = NODE_VALIDITY if args.days is None else args.days * DAY
    bundle = issue_node(_folder(args), args.node, args.role, validity, now=time.time())
    path = Path(args.output or f"{args.node}.qnet")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CommandError(f"issue: {path}: exists already", "-o FILE") from error
    with open(handle, "wb") as file:
        file.write(bundle)
    if args.json:
        print(as_json({"node": args.node, "file": str(path)}))
    else:
        print(f"{path}: key and certificate of node {args.node}; carry it there in a safe way and run: qnet cert install {path.name}")
    return 0


def _install(args: argparse.Namespace) -> int:
    from qnetpy.identity.keyfiles import install_bundle

    path = Path(args.file)
    identity = install_bundle(_folder(args), path.read_bytes(), replace=args.replace, origin=str(path))
    if args.json:
        print(as_json({"node": identity.name, "cluster": identity.cluster}))
    else:
        print(f"this machine is node {identity.name} of cluster {identity.cluster}; {path} is no longer needed: delete it")
    return 0


def _show(args: argparse.Namespace) -> int:
    from qnetpy.identity.certificate import date, fingerprint, parse_certificate, parse_pem_certificates
    from qnetpy.identity.keyfiles import NODE_CERTIFICATE

    path = Path(args.file) if args.file else _folder(args) / NODE_CERTIFICATE
    certificate = parse_certificate(parse_pem_certificates(path.read_bytes())[0])
    left = certificate.not_after - time.time()
    what: dict[str, object] = {
        "node": certificate.name,
        "cluster": certificate.cluster,
        "roles": sorted(certificate.roles),
        "valid from": date(certificate.not_before),
        "valid until": date(certificate.not_after),
        "days left": round(left / DAY, 1),
        "fingerprint": certificate.fingerprint,
        "key": fingerprint(certificate.static_key),
    }
    if args.json:
        print(as_json({name.replace(" ", "_"): value for name, value in what.items()}))
    else:
        print(
            facts(
                {
                    **what,
                    "roles": ", ".join(sorted(certificate.roles)) or "none",
                    "days left": f"{left / DAY:.1f}" if left > 0 else "EXPIRED",
                }
            )
        )
    return 0
