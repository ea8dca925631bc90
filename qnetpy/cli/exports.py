"""`qnet exports`: what other nodes may do with this node's files, and what this one may do with theirs.

qnet exports               every rule of this node
qnet exports NODE          what that node may do here, and what the user who asks may do there
qnet exports --refused     what was asked for here and no export covers
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from qnetpy.cli import daemon
from qnetpy.cli.output import CommandError, as_json, table, user

if TYPE_CHECKING:
    from resmgr.client import Client

SECONDS = 5.0
Fact = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="default: /etc/qnet/qnet.toml if there is one")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    parser.add_argument("--refused", action="store_true", help="what was asked for here and no export covers, the latest first")
    parser.add_argument("node", nargs="?", default="", help="a node of the cluster")


def run(args: argparse.Namespace) -> int:
    here = daemon.ask("exports", args.config, **({"node": args.node} if args.node else {}))
    if args.refused:
        refused = here["refused"]
        assert isinstance(refused, dict)
        if not refused and here["served"]:
            raise CommandError("only root and the daemon's user are told what was refused", "sudo qnet exports --refused")
        print(as_json(refused) if args.json else shown_refused(refused))
        return 0
    there: Fact | None = None
    if args.node:
        with daemon.connect(args.config) as client:
            if args.node != client.node:
                there = ask(client, args.node)
    if args.json:
        print(as_json({"here": {name: here[name] for name in ("exports", "rules", "known", "served")}, "there": there}))
        return 0
    print(shown(here, args.node))
    if there is not None:
        print()
        print(shown_there(there, args.node))
    return 0


def ask(client: Client, node: str) -> Fact:
    """What *node* says that the user who asks may do there."""
    import json

    from resmgr.attachproto import EXPORTS, LIST_LEN, REQUEST
    from resmgr.errors import ResmgrError
    from resmgr.ids import CHID_ATTACH, PID_SYSTEM
    from resmgr.walk import walk_blocking

    try:
        nd = walk_blocking(client, b"/net/" + os.fsencode(node), SECONDS)[0].address[0]
        connection = client.connect(nd, PID_SYSTEM, CHID_ATTACH)
        rows: list[object] = []
        while True:
            count, data, _ = connection.send(REQUEST.pack(EXPORTS, 0, len(rows)), reply_len=LIST_LEN, timeout=SECONDS)
            found = json.loads(bytes(data))
            rows += found["exports"]
            if not found["exports"] or len(rows) >= count:
                return {**found, "exports": rows}
    except ResmgrError as error:
        raise CommandError(f"node {node}: {(error.strerror or str(error)).lower()}", "qnet nodes") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"node {node} is of another version: {error}") from error


def shown(here: Fact, node: str) -> str:
    """This node's rules, for people."""
    exports, rules = here["exports"], here["rules"]
    assert isinstance(exports, list)
    assert isinstance(rules, list)
    whom = f"to {node}" if node else "to other nodes"
    lines = []
    if not here["known"]:
        lines.append(f"{node} was never seen here, so its roles are not known")
    if not here["served"]:
        lines.append("files are not served here")
    if exports:
        cells = [[one["path"], verbs(one), _whom(one), " ".join(one["devices"]), one["number"]] for one in exports]
        lines.append(table(cells, (f"EXPORTED {whom}", "MAY", "WHO", "DEVICES", "RULE")))
    else:
        lines.append(f"nothing is exported {whom}")
    if rules:
        cells = [[one["mapping"], _nodes(one), _details(one), one["number"]] for one in rules]
        lines += ["", table(cells, ("USERS", "OF", "AS", "RULE"))]
    else:
        lines += ["", f"no rule lets users of {node or 'other nodes'} in"]
    return "\n".join(lines)


def shown_there(there: Fact, node: str) -> str:
    """What we may do on the other node, for people."""
    exports = there["exports"]
    assert isinstance(exports, list)
    if there["user"] is None:
        return f"on {node}: refused to this user: {os.strerror(int(str(there['errno']))).lower()}"
    lines = [f"on {node} this user is user {there['user']}"]
    if exports:
        lines.append(table([[one["path"], verbs(one), " ".join(one["devices"])] for one in exports], (f"ON {node}", "MAY", "DEVICES")))
    else:
        lines.append(f"nothing of {node} is exported to this node")
    return "\n".join(lines)


def shown_refused(refused: Fact) -> str:
    rows = refused.get("rows")
    if not isinstance(rows, list) or not rows:
        return "nothing was refused"
    cells = [[one["path"], one["node"], one["uid"], one["count"], f"{one['seconds']:.0f} s ago", one["why"]] for one in rows]
    return table(cells, ("PATH", "NODE", "USER THERE", "TIMES", "LAST", "WHY"))


def verbs(one: Fact) -> str:
    found = one["verbs"]
    assert isinstance(found, list)
    return (", ".join(found) or "hidden") + (", set-ID" if one["setuid"] else "")


def _nodes(one: Fact) -> str:
    nodes, roles = one["nodes"], one["roles"]
    assert isinstance(nodes, list)
    assert isinstance(roles, list)
    return ", ".join([*nodes, *(f"role {role}" for role in roles)]) or "all nodes"


def _whom(one: Fact) -> str:
    users = one["users"]
    assert isinstance(users, list)
    return _nodes(one) + (f"; users {', '.join(users)}" if users else "")


def _details(one: Fact) -> str:
    users, groups = one["users"], one["groups"]
    assert isinstance(users, dict)
    assert isinstance(groups, dict)
    parts = [f"{number} is {name}" for number, name in users.items()]
    parts += [f"group {number} is {name}" for number, name in groups.items()]
    if one["mapping"] in ("identity", "table"):
        parts.append(f"root is {one['root'] or one['nobody'] or 'nobody'}")
    return ", ".join(parts) or str(one["nobody"] or user(65534, True))
