"""`qnet access check`: what a user of another node may do with a file of this one, and which rules say so.

qnet access check --node B --user anna /srv/x     a name is looked up here; the number is what B says of its user
"""

from __future__ import annotations

import argparse
import os

from qnetpy.cli.output import CommandError, as_json, facts, user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["check"], help="the rules that decide, and what the kernel says to the mapped user")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("--node", required=True, help="the other node")
    parser.add_argument(
        "--user", default="0", metavar="USER", help="its user: a number there, or a name of this machine with the same number"
    )
    parser.add_argument("--group", default="", metavar="GROUP", help="its first group (default: that of the user here, else the number)")
    parser.add_argument("path", help="a path of this node")


def run(args: argparse.Namespace) -> int:
    from qnetpy.cli import daemon

    uid, gid = numbers(args.user, args.group)
    found = daemon.ask("access", args.config, node=args.node, uid=uid, gid=gid, path=os.path.normpath(os.path.abspath(args.path)))
    if args.json:
        print(as_json(found))
    else:
        print(shown(found))
    return 0 if allowed(found) else 1


def numbers(name: str, group: str) -> tuple[int, int]:
    """(uid, gid). CommandError for who has no account here."""
    import grp
    import pwd

    if name.isdecimal():
        uid = int(name)
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except (KeyError, OverflowError):
            gid = uid
    else:
        try:
            record = pwd.getpwnam(name)
        except KeyError:
            raise CommandError(f"no account {name!r} on this machine", "its number there") from None
        uid, gid = record.pw_uid, record.pw_gid
    if group:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise CommandError(f"no group {group!r} on this machine", "its number there") from None
    return uid, gid


def allowed(found: dict[str, object]) -> bool:
    """Whether it can be used at all."""
    kernel = found["kernel"]
    return isinstance(kernel, dict) and any(kernel.get(verb) is True and verb in _verbs(found) for verb in ("read", "write"))


def shown(found: dict[str, object]) -> str:
    """For people."""
    verbs, kernel = _verbs(found), found["kernel"]
    if found["user"] is None:
        result = "nothing: the user is refused"
    elif not verbs:
        result = "nothing: it does not exist for them" if "hides" in str(found["what"]) else "nothing: permission denied"
    elif not isinstance(kernel, dict) or "error" in kernel:
        result = f"nothing: {str(kernel.get('error')).lower()}" if isinstance(kernel, dict) else "nothing"
    else:
        may: list[str] = [verb for verb in ("read", "write") if verb in verbs and kernel.get(verb) is True]
        may += ["execute"] if "read" in may and kernel.get("execute") is True else []
        result = ", ".join(may) or "nothing: its mode"
    told = {
        "path": found["path"],
        "by": f"user {found['uid']} of node {found['node']}" + ("" if found["known"] else ", which was never seen here: roles not known"),
        "may": result,
        "user": found["who"],
        "export": found["what"],
    }
    if isinstance(kernel, dict) and "error" not in kernel:
        name = user(int(str(found["user"])), True)
        told["kernel"] = f"lets {name} {', '.join(verb for verb, lets in kernel.items() if lets) or 'do nothing'}"
    return facts(told)


def _verbs(found: dict[str, object]) -> list[object]:
    verbs = found["verbs"]
    assert isinstance(verbs, list)
    return verbs
